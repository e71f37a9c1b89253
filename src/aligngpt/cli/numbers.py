"""Checks of numbers among the options, which the parser of the command line takes as they are."""

import math

import typer


def finite(value: float | None) -> float | None:
    """Refuse `nan` and `inf`, which pass every `min` and `max`; for `typer.Option(callback=...)`.

    Raises:
        typer.BadParameter: the value is no finite number.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"must be a finite number, not {value}")
    return value
