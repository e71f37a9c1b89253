"""POPE rated instead of asked: how sure of yes a model is, by its gate and at each level."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aligngpt.data.images.reference import Picture
from aligngpt.evaluation.alignment_measures.kept import KeptTables
from aligngpt.evaluation.alignment_measures.likelihoods import Level, Rating, yes_probabilities
from aligngpt.evaluation.alignment_measures.measures import calibration, yes_by_level
from aligngpt.evaluation.alignment_measures.running import LIKELIHOODS, as_table
from aligngpt.evaluation.benchmarks.folder import DataFolder
from aligngpt.evaluation.benchmarks.frame import Item
from aligngpt.evaluation.benchmarks.identity import without_name
from aligngpt.evaluation.benchmarks.suite.pope import Pope
from aligngpt.evaluation.results import RESULTS_FILE
from aligngpt.evaluation.results_folder import add_results, check_replaceable, save_results
from aligngpt.locks import owned_folder
from aligngpt.reports.statistics import share_interval

NAME = "pope-levels"


def measure_yes_no(
    engine: Rating, data: Path, out: Path, *, model: str, levels: int, limit: int | None = None
) -> dict[str, Any]:
    """POPE's yes rate, F1, accuracy and calibration by the gate and at each level.

    Yes is said if "Yes" is at least as likely as "No". Writes `results.json` and `table.md`, and the probabilities into
    `pope-levels/`; the same call resumes.

    Args:
        engine: the model.
        data: folder with LLaVA's `pope`, as for the benchmark `pope`.
        out: folder for the results.
        model: name and state of the model; probabilities are kept under it.
        levels: number N of the model's levels; 0 if it has none.
        limit: rate only this many questions, drawn at random.

    Raises:
        DataError: a file is missing or damaged.
        MeasureError: the folder has probabilities of another model or of other questions.
        EvaluationError: `out` has results of another kind, or is in use, see `add_results`.
        ImageError: a picture is missing or cannot be decoded.
    """
    check_replaceable(out, [NAME], [NAME])
    forced: list[Level] = [None, *range(1, levels + 1)]
    pope = Pope()
    items = pope.read(DataFolder(data, pope.source))
    if limit is not None and limit < len(items):
        items = [items[place] for place in sorted(random.Random(0).sample(range(len(items)), limit))]
    folder = out / NAME
    with owned_folder(folder, "evaluate"):
        probabilities = _rated(engine, items, forced, folder / LIKELIHOODS, model)
        figures = _figures(items, probabilities, forced)
        result = {"name": NAME, "model": model, "limit": limit, "questions": len(items), "levels": figures}
        save_results(folder / RESULTS_FILE, [result])
    add_results(out, [result], model, [NAME], lambda results: yes_no_table(results[0], markdown=True))
    return result


def yes_no_table(result: dict[str, Any], *, markdown: bool = False) -> str:
    """A line for each level: yes rate, F1, accuracy with its 95 % interval, calibration error and Brier score."""
    rows = [["level", "yes", "F1", "accuracy", "calibration error", "Brier score"]]
    for level, found in result["levels"].items():
        share = found["accuracy"]
        accuracy = f"{100 * share['value']:.1f}% ({100 * share['low']:.1f}–{100 * share['high']:.1f})"
        rates = [f"{100 * found[name]:.1f}%" for name in ("yes_ratio", "f1")]
        rows.append([level, *rates, accuracy, f"{found['ece']:.3f}", f"{found['brier']:.3f}"])
    return as_table(rows, markdown=markdown)


def _rated(engine: Rating, items: Sequence[Item], levels: Sequence[Level], path: Path, model: str) -> np.ndarray:
    """The probability of yes, `(levels, questions)`: those in the file, and new ones."""
    asked = repr([(item.question_id, item.prompt, item.group) for item in items])
    digest = hashlib.sha256(asked.encode("utf-8", "backslashreplace")).hexdigest()
    kept = KeptTables(path, {"model": without_name(model), "questions": digest, "levels": list(levels)})
    if todo := kept.missing(len(items)):
        questions = [(items[place].prompt, _picture_of(items[place])) for place in todo]
        yes_probabilities(engine, questions, levels, on_rated=lambda number, one: kept.add(todo[number], one))
    return np.stack([kept.known[place] for place in range(len(items))], axis=1)


def _picture_of(item: Item) -> Picture:
    assert item.picture is not None  # POPE's questions have one each.
    return item.picture


def _figures(items: Sequence[Item], probabilities: np.ndarray, levels: Sequence[Level]) -> dict[str, Any]:
    truth = [item.truth == "yes" for item in items]
    groups = [item.group for item in items]
    found = {}
    for level, counts, said in zip(levels, yes_by_level(probabilities, truth), probabilities, strict=True):
        right = [float((one >= 0.5) == true) for one, true in zip(said, truth, strict=True)]
        found["gate" if level is None else str(level)] = {
            "yes_ratio": counts.yes_ratio,
            "f1": counts.f1,
            "accuracy": share_interval(right, groups)._asdict(),
            **calibration(said.tolist(), truth)._asdict(),
        }
    return found
