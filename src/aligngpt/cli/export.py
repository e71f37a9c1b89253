"""`aligngpt export`: models for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from aligngpt.cli.options import Base, Model


def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the exported model.")],
    fold: Annotated[
        str | None,
        typer.Option(
            help="The one alignment embedding for every image and question: global (level N), average (level N plus "
            "the mean of the others), mean (the mean of all levels) or level:K.",
            show_default="that of MODEL, if it never changes",
        ),
    ] = None,
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="The program that must be able to read the folder.")
    ] = "transformers",
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Write the two files that llama.cpp reads instead of a plain LLaVA.")
    ] = False,
    gguf_type: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"], typer.Option(help="How --gguf stores matrices.")
    ] = "f16",
    square_images: Annotated[
        bool,
        typer.Option(
            "--square-images", help="You will send llama.cpp only square images; it prepares others differently."
        ),
    ] = False,
    base: Base = None,
) -> None:
    """Write a model as a plain LLaVA, which other programs read without aligngpt."""
    if gguf:
        from aligngpt.exporting.gguf.export import export_gguf

        if engine != "transformers":
            raise typer.BadParameter(f"{engine} does not read what --gguf writes; leave one of them out")
        made = export_gguf(model, out, chosen=fold, stored=gguf_type, square_images=square_images, base=base)
        print(f"{made.parameters:,} parameters as {made.stored}: {out}")
        print(f"alignment: {made.fold or 'none'}")
        print(f"llama.cpp's GELU in the projector: changes images by {made.projector_difference:.1e}")
        return
    if gguf_type != "f16" or square_images:
        raise typer.BadParameter("--gguf-type and --square-images need --gguf")

    from aligngpt.exporting.llava import export_llava

    done = export_llava(model, out, chosen=fold, engine=engine, base=base)
    print(f"{done.parameters:,} parameters: {out}")
    print(f"alignment: {done.fold or 'none'}")
    for program, refusal in done.engines.items():
        print(f"{program}: {refusal or ('reads it' if program == 'transformers' else 'should read it (not tried)')}")
