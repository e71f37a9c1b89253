"""`results.json` and `table.md` in a folder: the results of one model on benchmarks of one kind."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from aligngpt.evaluation.benchmarks.identity import without_name
from aligngpt.evaluation.results import RESULTS_FILE, EvaluationError, is_evaluation
from aligngpt.files import atomic_write
from aligngpt.locks import FolderInUse, folder_in_turn

TABLE_FILE = "table.md"
PATIENCE = 10.0
"""Seconds to wait for another command that writes into the folder."""


def check_replaceable(out: Path, names: Collection[str], kind: Collection[str]) -> None:
    """Check that benchmarks would not replace the results of something else.

    Args:
        out: folder of all results; each benchmark's own are in a folder of its name below.
        names: the benchmarks to run.
        kind: the names of all benchmarks whose results have the same form.

    Raises:
        EvaluationError: a `results.json` is of another kind, or not of benchmarks.
    """
    _saved(out / RESULTS_FILE, kind)
    for name in names:
        _saved(out / name / RESULTS_FILE, [name])


def save_results(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write results as a JSON array."""
    with atomic_write(path) as file:
        json.dump(results, file, indent=2, ensure_ascii=False, allow_nan=False)


def add_results(
    out: Path,
    results: Sequence[dict[str, Any]],
    model: str,
    kind: Collection[str],
    table: Callable[[list[dict[str, Any]]], str],
) -> None:
    """Write `results.json` and `table.md` with results and those of the same model on other benchmarks from before.

    Commands that write into the same folder take turns.

    Args:
        out, kind: see `check_replaceable`.
        results: those of this run, each with a `name`, a `model` and the same fields; saved for each benchmark already.
        model: name and state of the model; without one nothing tells whose results those from before are.
        table: writes results as Markdown.

    Raises:
        EvaluationError: another command holds the folder for longer than `PATIENCE`, or has meanwhile written results
            of another kind. Says where the results of this run are.
    """
    names, fields = [one["name"] for one in results], {frozenset(one) for one in results}
    try:
        with folder_in_turn(out, "evaluate", patience=PATIENCE):
            others = [
                one
                for one in _saved(out / RESULTS_FILE, kind)
                if model
                and one["name"] not in names
                and without_name(str(one.get("model"))) == without_name(model)
                # An earlier version of aligngpt may have written others.
                and frozenset(one) in fields
            ]
            everything = [*others, *results]
            save_results(out / RESULTS_FILE, everything)
            with atomic_write(out / TABLE_FILE) as file:
                file.write(table(everything))
    except (FolderInUse, EvaluationError) as error:
        places = ", ".join(str(out / name / RESULTS_FILE) for name in names)
        raise EvaluationError(
            f"the figures are in {places}; only {out / TABLE_FILE} is not written, which the same command does without "
            f"asking again once it can: {error}"
        ) from error


def _saved(path: Path, kind: Collection[str]) -> list[dict[str, Any]]:
    """The results in a file; none if it is missing.

    Raises:
        EvaluationError: it has something else than results on benchmarks of this kind.
    """
    if not path.exists():
        return []
    try:
        found = list(json.loads(path.read_text(encoding="utf-8")))
        others = [str(one["name"]) for one in found if one["name"] not in kind]
    except (OSError, ValueError, TypeError, KeyError):
        evaluation = is_evaluation(path)
        what = "is of the evaluation of a file of questions" if evaluation else "cannot be read as that of benchmarks"
    else:
        if not others:
            return found
        what = f"has results of {', '.join(others)}"
    raise EvaluationError(
        f"{path}, which would be replaced, {what}; choose another folder with --out, or move that file away"
    )
