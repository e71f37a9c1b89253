"""`aligngpt evaluate --benchmarks sugarcrepe,winoground,whatsup` or `pope-levels`: rated for likelihood, not asked."""

from collections.abc import Sequence
from pathlib import Path

import typer


def check_rated_only(names: Sequence[str], rated: Sequence[Sequence[str]], options: Sequence[str]) -> None:
    """Refuse benchmarks that cannot run together, and options that are about answers.

    Args:
        names: the benchmarks to run.
        rated: groups of benchmarks that are rated; those of one group can run together.
        options: the options given that are about answers.

    Raises:
        BadParameter: there is one of either.
    """
    group = next(one for one in rated if set(one) & set(names))
    if other := [name for name in names if name not in group]:
        how = "is" if len(group) == 1 else "are"
        raise typer.BadParameter(f"{', '.join(group)} {how} rated, not asked; run {other[0]} by itself")
    if options:
        raise typer.BadParameter(f"{options[0]} is not for {names[0]}, which is rated, not asked; omit it")


def rate(
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
    """Measure a model on rated benchmarks and print the table, see `measure_captions` and `measure_yes_no`."""
    from aligngpt.evaluation.alignment_measures import yes_no
    from aligngpt.evaluation.alignment_measures.running import captions_table, measure_captions
    from aligngpt.evaluation.benchmarks.identity import identity_of
    from aligngpt.evaluation.results import RESULTS_FILE
    from aligngpt.evaluation.results_folder import TABLE_FILE
    from aligngpt.inference.engine import Engine

    with Engine.load(model, base=base, device=device, dtype=precision) as engine:
        levels = 0 if engine.model.config.alignment == "none" else engine.num_levels
        identity = identity_of(engine, model)
        if yes_no.NAME in names:
            found = yes_no.measure_yes_no(engine, data, out, model=identity, levels=levels, limit=limit)
            print(yes_no.yes_no_table(found))
        else:
            results = measure_captions(engine, names, data, out, model=identity, levels=levels, limit=limit)
            print(captions_table(results))
    print(f"results: {out / RESULTS_FILE}\ntable: {out / TABLE_FILE}")
