"""`aligngpt ask`: one question about one image."""

from pathlib import Path
from typing import Annotated

import typer

from aligngpt.cli.options import Base, Device, Model, Precision


def ask(
    model: Model,
    image: Annotated[Path, typer.Argument(help="Image: PNG, JPEG, WebP, GIF, BMP or TIFF.")],
    question: Annotated[str, typer.Argument(help="Question about the image.")],
    base: Base = None,
    show_alignment: Annotated[
        bool,
        typer.Option("--show-alignment", help="After the answer, print the weight that the gate gives each level."),
    ] = False,
    level: Annotated[int | None, typer.Option(min=1, help="Use alignment level 1…N instead of the gate's mix.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of the answer, in tokens.")] = 256,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Ask one question about one image; the answer is printed as it is generated."""
    from aligngpt.inference.ask import ask
    from aligngpt.printing import printable

    for piece in ask(
        model,
        image,
        question,
        base=base,
        show_alignment=show_alignment,
        level=level,
        max_new_tokens=max_new_tokens,
        device=device,
        precision=precision,
    ):
        print(printable(piece), end="", flush=True)
    print()
