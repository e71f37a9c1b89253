"""Published figures, and a table that shows measured ones beside them."""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from aligngpt.evaluation.benchmarks.results import BenchmarkResult

MODELS = ("AlignGPT-7B", "AlignGPT-13B", "LLaVA-1.5-7B", "LLaVA-1.5-13B")


@cache
def published_figures() -> dict[str, dict[str, float]]:
    """Model → column → figure: AlignGPT's from its README (July 2024), LLaVA-1.5's from its model zoo.

    In percent, MME in points of perception. LLaVA's SEED figure is of images and videos, so it is left out here.
    """
    content = json.loads((files(__package__) / "published_results.json").read_text(encoding="utf-8"))
    found = {name: dict(zip(content["columns"], content[name], strict=True)) for name in MODELS}
    for name in MODELS:
        if name.startswith("LLaVA"):
            del found[name]["SEED"]
    return found


def differences(result: BenchmarkResult) -> dict[str, float]:
    """Measured minus published, by model; empty where the two cannot be compared.

    They can if the benchmark has a published figure, and all of it was scored by the published rules on pictures shown
    as AlignGPT's own evaluation shows them.
    """
    if result.figure is None or result.column is None or not result.as_published:
        return {}
    return {
        model: result.figure - figures[result.column]
        for model, figures in published_figures().items()
        if result.column in figures
    }


def comparison_table(results: Sequence[BenchmarkResult]) -> str:
    """The figures with their 95 % intervals and the published ones, as lines for a terminal."""
    rows = _rows(results)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *_remarks(results)])


def comparison_markdown(results: Sequence[BenchmarkResult]) -> str:
    """The same as `comparison_table` in Markdown."""
    header, *rows = (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in _rows(results))
    rule = "|" + "---|" * (3 + len(MODELS))
    return "\n".join([header, rule, *rows, "", *(f"- {remark}" for remark in _remarks(results))]) + "\n"


def _rows(results: Sequence[BenchmarkResult]) -> list[list[str]]:
    rows = [["", "figure", "95 % interval", *(f"{model} (difference)" for model in MODELS)]]
    for result in results:
        unit = "%" if result.unit == "%" else ""
        figure = "–" if result.figure is None else f"{result.figure:.1f}{unit}"
        interval = "–" if result.low is None else f"{result.low:.1f}–{result.high:.1f}"
        gaps = differences(result)
        cells = []
        for model in MODELS:
            theirs = published_figures()[model].get(result.column) if result.column is not None else None
            gap = f" ({gaps[model]:+.1f})" if model in gaps else ""
            cells.append("–" if theirs is None else f"{theirs:.1f}{gap}")
        rows.append([f"{result.title}, {result.rules} rules", figure, interval, *cells])
    return rows


def _remarks(results: Sequence[BenchmarkResult]) -> list[str]:
    found = [
        f"{result.title}: {note}"
        for result in results
        for note in (f"split {result.split}", *result.notes, *(f"to upload: {path}" for path in result.uploads))
    ]
    return [
        *found,
        "Published figures have no intervals; a difference inside the measured interval is no evidence of one.",
    ]
