"""`aligngpt check`: every problem in data files."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from aligngpt.cli.options import PROBLEMS_FOUND, image_root_option
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub

STANDARD_OUTPUT = Path("-")


def check(
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Data files: JSON, JSON lines, CSV, TSV (also compressed), COCO captions, Parquet or tar files, or "
            "folders of images with texts."
        ),
    ],
    image_root: Annotated[Path | None, image_root_option("image root of the recipe, or each file's own folder")] = None,
    model: Annotated[str | None, typer.Option(help="Model to count tokens with: folder or hub name.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Check against a stage of this recipe; tokens are counted with its backbones."),
    ] = None,
    stage: Annotated[
        Literal["pretrain", "instruct"] | None, typer.Option(help="Stage of the recipe.", show_default="instruct")
    ] = None,
    levels: Annotated[int | None, typer.Option(min=2, help="N: report levels outside 1…N.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Decode every image, not only its header.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--json", help="Write the problems, 10,000 per reason at most, to this file; - for the standard output."
        ),
    ] = None,
) -> None:
    """Check data files and list every problem.

    Exit codes: 0 if every record can be used, 3 if a record would be rejected or a file cannot be read, 1 for other
    errors, 2 for wrong usage.
    """
    if model is not None and recipe is not None:
        raise typer.BadParameter("give --model or --recipe, not both")
    if stage is not None and recipe is None:
        raise typer.BadParameter("--stage requires --recipe")
    if out is not None and out != STANDARD_OUTPUT:
        from aligngpt.checking.output import check_output

        check_output(out, [*data, *([recipe] if recipe is not None else [])])
    read = None
    if recipe is not None:
        from aligngpt.training.recipe import load_recipe

        read = load_recipe(recipe)
    if model is not None:
        local_or_hub(model, "the model", AlignGPTError)

    from aligngpt.checking.files import check_files, checks_as_json, write_checks

    if read is not None:
        from aligngpt.checking.for_training import check_for_recipe

        checks = check_for_recipe(data, read, stage or "instruct", image_root=image_root, levels=levels, full=full)
    elif model is not None:
        from aligngpt.checking.for_training import check_for_model

        checks = check_for_model(data, model, image_root=image_root, levels=levels, full=full)
    else:
        checks = check_files(data, image_root=image_root, levels=levels, full=full)
    if out == STANDARD_OUTPUT:
        print(checks_as_json(checks))
    else:
        if out is not None:
            write_checks(out, checks)
        print("\n\n".join(one.text() for one in checks))
        if out is not None:
            print(f"\nproblems: {out}")
    if not all(one.good for one in checks):
        raise typer.Exit(PROBLEMS_FOUND)
