"""What a quickstart run found: its key figures, the printed table, and whether the model learnt to look."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from aligngpt.alignment.levels import AlignmentLevels
from aligngpt.data.sources.json import read_records
from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.results import EvaluationResult, Tally
from aligngpt.evaluation.run_evaluations import difference_rows, find_evaluations
from aligngpt.evaluation.run_levels import wrong_share_by_level
from aligngpt.reports.sections import DifferenceRow
from aligngpt.reports.statistics import Interval

OWN, SHUFFLED = "AlignGPT", "AlignGPT, images shuffled"
PRIOR = "Text only"
"""The text-only baseline on the test split; on another split, the split's name follows after a comma."""

SHIFT_BASELINES = "baselines-shifts.json"
"""The text-only baselines of the other test splits; runs of an older version have no such file and no such splits."""


class NotLearntError(AlignGPTError):
    """The trained model answers no better than without looking at the images."""


def key_figures(folder: Path, steps: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The key figures of a finished run.

    Args:
        folder: of the run.
        steps: seconds and peak memory (bytes) by step name.
    """
    prior = _json(folder, "baselines.json")[PRIOR]
    measured = _json(folder, "separation.json")
    peaks = [step["peak_memory"] for step in steps.values()]
    figures = {
        "accuracy": _tally(folder, "test").accuracy,
        "prior": prior["correct"] / prior["total"],
        "shuffled": _tally(folder, "shuffled").accuracy,
        "auc": measured["roc_auc"],
        "minutes": sum(step["seconds"] for step in steps.values()) / 60,
    }
    # Not every system can tell.
    return figures if None in peaks else figures | {"peak_gb": max(peaks) / 1e9}


def print_outcome(folder: Path, figures: Mapping[str, float], *, title: str, question: str) -> None:
    """Print accuracies, differences, how well the scores separate captions, and what to do next.

    Args:
        folder: of the run.
        figures: see `key_figures`; printed last.
        title: name of the data set.
        question: one to try the model with, about any picture.
    """
    tallies = _tallies(folder)
    by_picture = any(tally.by_picture for tally in tallies.values())
    counted = "The intervals count pictures: questions about the same one are answered alike." if by_picture else None
    split = "test split" if len(_shifts(folder)) == 0 else "test splits"
    table = Table(title=f"{title}, {split}", title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("accuracy", "right/asked", "95 % interval"):
        table.add_column(heading, justify="right")
    for name, tally in tallies.items():
        low, high = tally.interval
        table.add_row(name, f"{tally.accuracy:.1%}", f"{tally.correct}/{tally.total}", f"{low:.1%}–{high:.1%}")
    Console().print(table)
    if counted is not None:
        print(counted)
    for row in _differences(folder):
        print(f"{OWN} minus {row.baseline}, on the {row.questions:,} questions that both answered: {_points(row)}")
    measured = _json(folder, "separation.json")
    print(_separation(measured))
    if kinds := measured.get("by_kind"):
        print(_by_kind(kinds))
    shares = ", ".join(
        "empty" if math.isnan(one.value) else f"{one.value:.0%} ({one.low:.0%}–{one.high:.0%})"
        for one in wrong_shares(folder)
    )
    print(f"wrong captions in level 1 to N (95 % interval): {shares}")
    print(f"report: {folder / 'report.html'}")
    image = folder / "data" / "images" / "test" / "0.png"
    print(f'try: aligngpt ask {folder / "model"} {image} "{question}" --show-alignment')
    digits = {"minutes": 1, "peak_gb": 1}
    told = " ".join(f"{name}={value:.{digits.get(name, 3)}f}" for name, value in figures.items())
    print(f"quickstart {told}")


def check_learnt(folder: Path, minutes: float) -> None:
    """Check that the model is significantly better than each baseline on the questions that both answered.

    A run of an older version has no answers of the text-only baseline; its accuracy is then compared with the lower
    end of the model's interval.

    Args:
        folder: of the run.
        minutes: time budget of the run.

    Raises:
        NotLearntError: it is not.
    """
    own = _tally(folder, "test")
    baselines = {SHUFFLED: _tally(folder, "shuffled").accuracy}
    prior = _json(folder, "baselines.json")[PRIOR]
    baselines[PRIOR] = prior["correct"] / prior["total"]
    compared = {row.baseline: row for row in _differences(folder)}
    for name, share in sorted(baselines.items(), key=lambda item: -item[1]):
        row = compared.get(name)
        if row is not None and row.low <= 0:
            why = f"the difference is {_points(row)}"
        elif row is None and own.interval[0] <= share:
            why = f"its 95 % interval begins at {own.interval[0]:.1%}"
        else:
            continue
        raise NotLearntError(
            f"the model learnt too little: {own.accuracy:.1%} of its answers are correct, compared with {share:.1%} "
            f"of {name}, which does not see the image asked about ({why}). Allow more time, such as --minutes "
            f"{2 * minutes:g}, or use a machine that is less busy"
        )


def wrong_shares(folder: Path) -> list[Interval]:
    """The share of wrong captions in level 1…N of a run, with its interval."""
    levels, wrong, pictures = [], [], []
    for _, record in read_records(folder / "captions.json"):
        assert isinstance(record, dict)
        levels.append(record["similarity"] + 1)
        wrong.append(record["caption_quality"] == "wrong")
        pictures.append(record["image"])
    num_levels = AlignmentLevels.load(folder / "scores" / "levels.json").num_levels
    return wrong_share_by_level(levels, wrong, pictures, num_levels)


def _separation(measured: Mapping[str, Any]) -> str:
    """How well the scores tell right from wrong captions; a run of an older version has no intervals."""
    if "paired" not in measured:
        return f"scores, right against wrong captions of test images: ROC AUC {measured['roc_auc']:.3f}"
    paired = measured["paired"]
    return (
        f"scores of test images: the right caption beats the wrong one of the same image in {paired['share']:.1%} of "
        f"{measured['pictures']:,} (95 % interval {paired['low']:.1%}–{paired['high']:.1%}); ROC AUC over all images "
        f"{measured['roc_auc']:.3f} ({measured['low']:.3f}–{measured['high']:.3f}, by picture)"
    )


def _by_kind(kinds: Mapping[str, Mapping[str, float]]) -> str:
    shown = ", ".join(
        f"{kind} {one['roc_auc']:.3f} ({one['low']:.3f}–{one['high']:.3f})"
        for kind, one in sorted(kinds.items(), key=lambda item: -item[1]["roc_auc"])
    )
    return f"ROC AUC of right captions against each kind of bad caption (95 % interval): {shown}"


def _tallies(folder: Path) -> dict[str, Tally]:
    """The rows of the table: the model and its baselines on `test`, then on each other split."""
    found = _json(folder, "baselines.json") | _shift_baselines(folder)
    baselines = {name: Tally.of_facts(facts) for name, facts in found.items()}
    tallies = {OWN: _tally(folder, "test"), SHUFFLED: _tally(folder, "shuffled"), PRIOR: baselines[PRIOR]}
    for split in _shifts(folder):
        tallies |= {f"{OWN}, {split}": _tally(folder, split), f"{PRIOR}, {split}": baselines[f"{PRIOR}, {split}"]}
    return tallies


def _shifts(folder: Path) -> list[str]:
    """The test splits other than `test`."""
    return [name.removeprefix(f"{PRIOR}, ") for name in _shift_baselines(folder)]


def _shift_baselines(folder: Path) -> dict[str, Any]:
    return _json(folder, SHIFT_BASELINES) if (folder / SHIFT_BASELINES).is_file() else {}


def _points(row: DifferenceRow) -> str:
    by_picture = ", by picture," if row.by_picture else ""
    return (
        f"{100 * row.difference:+.1f} percentage points (95 % interval{by_picture} {100 * row.low:+.1f} to "
        f"{100 * row.high:+.1f})"
    )


def _differences(folder: Path) -> list[DifferenceRow]:
    return difference_rows(find_evaluations(folder / "evaluation")[0], _json(folder, "baselines.json"))


def _tally(folder: Path, name: str) -> Tally:
    return EvaluationResult.load(folder / "evaluation" / name / "results.json").overall


def _json(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return content
