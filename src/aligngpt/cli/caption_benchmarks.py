"""`aligngpt evaluate --benchmarks sugarcrepe,winoground,whatsup`: benchmarks whose captions are rated, not asked."""

from collections.abc import Sequence
from pathlib import Path

import typer


def check_captions_only(names: Sequence[str], rated: Sequence[str], options: Sequence[str]) -> None:
    """Refuse benchmarks that are asked beside those that are rated, and options that are about answers.

    Args:
        names: the benchmarks to run.
        rated: all benchmarks whose captions are rated.
        options: the options given that are about answers.

    Raises:
        BadParameter: there is one of either.
    """
    if other := [name for name in names if name not in rated]:
        raise typer.BadParameter(f"{', '.join(rated)} are rated, not asked; run {other[0]} by itself")
    if options:
        raise typer.BadParameter(f"{options[0]} is not for {names[0]}, whose captions are rated; omit it")


def rate_captions(
    model: str,
    names: Sequence[str],
    data: Path,
    out: Path,
    *,
    limit: int | None,
    base: str | None,
    device: str,
    precision: str,
) -> None:
    """Measure a model on benchmarks of captions and print the table, see `measure_captions`."""
    from aligngpt.evaluation.alignment_measures.running import RESULTS, TABLE, captions_table, measure_captions
    from aligngpt.evaluation.benchmarks.identity import identity_of
    from aligngpt.inference.engine import Engine

    with Engine.load(model, base=base, device=device, dtype=precision) as engine:
        levels = 0 if engine.model.config.alignment == "none" else engine.num_levels
        identity = identity_of(engine, model)
        results = measure_captions(engine, names, data, out, model=identity, levels=levels, limit=limit)
    print(captions_table(results))
    print(f"results: {out / RESULTS}\ntable: {out / TABLE}")
