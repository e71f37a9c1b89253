"""Measures alignment on benchmarks of right and wrong captions; resumable, with results as JSON and a table."""

import hashlib
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aligngpt.evaluation.alignment_measures.caption_sets import CAPTION_SETS, CaptionSet
from aligngpt.evaluation.alignment_measures.kept import KeptTables
from aligngpt.evaluation.alignment_measures.likelihoods import (
    DESCRIBE,
    Level,
    Numbers,
    Rating,
    caption_likelihoods,
)
from aligngpt.evaluation.alignment_measures.measures import choices, dose_response, level_detector
from aligngpt.evaluation.benchmarks.identity import without_name
from aligngpt.evaluation.results import RESULTS_FILE
from aligngpt.evaluation.results_folder import add_results, check_replaceable, save_results
from aligngpt.locks import owned_folder
from aligngpt.reports.statistics import Interval

LIKELIHOODS = "likelihoods.jsonl"


def measure_captions(
    engine: Rating, names: Sequence[str], data: Path, out: Path, *, model: str, levels: int, limit: int | None = None
) -> list[dict[str, Any]]:
    """How often a model finds the right caption more likely than wrong ones, by the gate and at each level.

    Writes a folder for each benchmark with the likelihoods and `results.json`, and `results.json` and `table.md` with
    all results, those of the same model on other captions from before among them. The same call resumes.

    Args:
        engine: the model.
        names: benchmarks, see `CAPTION_SETS`.
        data: folder with a folder `NAME` for each, which holds the files of its release.
        out: folder for the results.
        model: name and state of the model; likelihoods are kept under it.
        levels: number N of the model's levels; 0 if it has none.
        limit: rate only this many sets, drawn at random.

    Raises:
        DataError: a file is missing or damaged.
        MeasureError: the folder has likelihoods of another model or of other captions.
        EvaluationError: `out` has results of another kind, or is in use, see `add_results`.
        ImageError: a picture is missing or cannot be decoded.
    """
    forced: list[Level] = [None, *range(1, levels + 1)]
    check_replaceable(out, names, CAPTION_SETS)
    results = []
    for name in dict.fromkeys(names):
        sets = CAPTION_SETS[name](data / name)
        if limit is not None and limit < len(sets):
            sets = [sets[place] for place in sorted(random.Random(0).sample(range(len(sets)), limit))]
        folder = out / name
        with owned_folder(folder, "evaluate"):
            tables = _rated(engine, sets, forced, folder / LIKELIHOODS, model)
            result = {"name": name, "model": model, "prompt": DESCRIBE, "limit": limit, **_figures(sets, tables)}
            save_results(folder / RESULTS_FILE, [result])
        results.append(result)
    add_results(out, results, model, CAPTION_SETS, partial(captions_table, markdown=True))
    return results


def captions_table(results: Sequence[dict[str, Any]], *, markdown: bool = False) -> str:
    """The shares of right choices with their 95 % intervals, a line for each benchmark and level."""
    rows = [["benchmark", "level", "sets", "text", "image", "group", "detector AUC"]]
    for result in results:
        for level, found in result["choices"].items():
            auc = _shown(result["level_detector"], 1) if level == "gate" else "–"
            shares = [_shown(found[kind], 100) for kind in ("text", "image", "group")]
            rows.append([result["name"], level, f"{result['sets']:,}", *shares, auc])
    return as_table(rows, markdown=markdown)


def as_table(rows: Sequence[Sequence[str]], *, markdown: bool) -> str:
    """Rows of cells, the first of them the header, in Markdown or in columns."""
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _rated(
    engine: Rating, sets: Sequence[CaptionSet], levels: Sequence[Level], path: Path, model: str
) -> list[Numbers]:
    """The table of each set, `(levels, pictures, captions)`: those in the file, and new ones, saved as they come."""
    asked = repr([(one.captions, [picture.name for picture in one.pictures]) for one in sets])
    digest = hashlib.sha256(asked.encode("utf-8", "backslashreplace")).hexdigest()
    state = {"model": without_name(model), "captions": digest, "levels": list(levels), "prompt": DESCRIBE}
    kept = KeptTables(path, state)
    if todo := kept.missing(len(sets)):
        caption_likelihoods(
            engine,
            [sets[place] for place in todo],
            levels,
            on_rated=lambda number, table: kept.add(todo[number], table),
        )
    return [kept.known[place] for place in range(len(sets))]


def _figures(sets: Sequence[CaptionSet], tables: Sequence[Numbers]) -> dict[str, Any]:
    groups = [one.pictures[0].name for one in sets]
    by_level = {}
    for level in range(len(tables[0])):
        found = choices([table[level] for table in tables], groups)
        by_level["gate" if level == 0 else str(level)] = {
            kind: None if share is None else share._asdict() for kind, share in found._asdict().items()
        }
    kinds = {}
    for kind in sorted({one.kind for one in sets if one.kind}):
        places = [place for place, one in enumerate(sets) if one.kind == kind]
        share = choices([tables[place][0] for place in places], [groups[place] for place in places]).text
        kinds[kind] = {**share._asdict(), "sets": len(places)}
    facts: dict[str, Any] = {"sets": len(sets), "choices": by_level, "kinds": kinds}
    facts |= {"dose_response": [], "level_detector": None}
    if len(tables[0]) > 2:
        facts["dose_response"] = [one._asdict() for one in dose_response([table[1:] for table in tables])]
        rows = [
            (table[-1, i, j], table[1, i, j], i == j, one.pictures[i].name)
            for one, table in zip(sets, tables, strict=True)
            for i in range(table.shape[1])
            for j in range(table.shape[2])
        ]
        highest, lowest, right, pictures = zip(*rows, strict=True)
        facts["level_detector"] = level_detector(highest, lowest, right, pictures).auc._asdict()
    return facts


def _shown(found: dict[str, float] | None, scale: int) -> str:
    if found is None:
        return "–"
    share = Interval(**found)
    digits = 1 if scale == 100 else 3
    unit = "%" if scale == 100 else ""
    ends = f"{scale * share.low:.{digits}f}–{scale * share.high:.{digits}f}"
    return f"{scale * share.value:.{digits}f}{unit} ({ends})"
