"""`aligngpt export`: models for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from aligngpt.cli.options import Base


def export(
    model: Annotated[str, typer.Argument(help="Model: folder, hub name or adapter folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the exported model.")],
    fold: Annotated[
        str | None,
        typer.Option(
            help="The one alignment embedding for every image and question: global (level N), mean (the mean of the "
            "levels) or level:K.",
            show_default="that of MODEL, if it never changes",
        ),
    ] = None,
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="The program that must be able to read the folder.")
    ] = "transformers",
    base: Base = None,
) -> None:
    """Write a model as a plain LLaVA, which other programs read without aligngpt."""
    from aligngpt.exporting.llava import export_llava

    done = export_llava(model, out, chosen=fold, engine=engine, base=base)
    print(f"{done.parameters:,} parameters: {out}")
    print(f"alignment: {done.fold or 'none'}")
    for program, refusal in done.engines.items():
        print(f"{program}: {refusal or ('reads it' if program == 'transformers' else 'should read it (not tried)')}")
