"""`aligngpt inspect`: a page about what alignment does in a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from aligngpt.cli.options import Base, Device, Model, Precision, image_root_option, must_exist
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub
from aligngpt.progress import say


def inspect(
    model: Model,
    data: Annotated[
        Path,
        typer.Argument(
            help="Records with images and answers: JSON, JSON lines, CSV, TSV (also compressed), Parquet or tar files."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="HTML file; the numbers are written beside it, to the same name with .json.")
    ] = Path("inspection.html"),
    base: Base = None,
    image_root: Annotated[Path | None, image_root_option("the folder of DATA")] = None,
    kind_field: Annotated[
        str | None,
        typer.Option(
            help="Field of the records that names their kind of task, if DATA is not Parquet or tar.",
            show_default="question_type, category or source",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Look at this many records at most, drawn at random.")] = 200,
    examples: Annotated[int, typer.Option(min=0, help="Number of similarity maps to draw.")] = 6,
    seed: Annotated[int, typer.Option(help="Random seed for --limit.")] = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace OUT and its .json if they exist.")] = False,
) -> None:
    """Write a page about what alignment does in a model: gate, forced levels, similarity maps, level embeddings."""
    must_exist(data, "the data", or_address=True)
    local_or_hub(model, "the model", AlignGPTError, with_owner=True)

    from aligngpt.inspecting.inspecting import inspect_model

    written = inspect_model(
        model,
        data,
        out,
        base=base,
        image_root=image_root,
        kind_field=kind_field,
        limit=limit,
        examples=examples,
        seed=seed,
        device=device,
        precision=precision,
        force=force,
    )
    for note in written.notes:
        say(f"note: {note}")
    print(written.headline)
    print(f"page: {written.page}\nnumbers: {written.numbers}")
