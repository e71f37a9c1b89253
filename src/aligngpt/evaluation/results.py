"""The output of an evaluation: predictions and their accuracies."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.reports.statistics import wilson_interval

PREDICTIONS_FILE = "predictions.jsonl"
RESULTS_FILE = "results.json"
WITHOUT_KIND = "all"


class EvaluationError(AlignGPTError):
    """An evaluation cannot be run, or its folder contains a different one."""


@dataclass(frozen=True)
class Tally:
    """The number of correct answers, with the 95 % Wilson interval of the accuracy."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share of correct answers, 0…1; NaN without answers."""
        return self.correct / self.total if self.total else float("nan")

    def facts(self) -> dict[str, float]:
        """The entry in results.json."""
        low, high = wilson_interval(self.correct, self.total)
        return {"accuracy": self.accuracy, "correct": self.correct, "total": self.total, "low": low, "high": high}


@dataclass(frozen=True)
class EvaluationResult:
    """The results of an evaluation.

    Attributes:
        overall: tally of all questions.
        by_kind: tally of each question type named in the file.
        gate_weights: mean gate weights of levels 1…N-1, by question type.
        seconds: duration of this run; interrupted earlier runs are not included.
        rejects: number of questions skipped because they could not be asked.
        by_reason: number of skipped questions by reason.
    """

    overall: Tally
    by_kind: dict[str, Tally] = field(default_factory=dict)
    gate_weights: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    rejects: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)

    def table(self) -> str:
        """The accuracies and the number of skipped questions, as lines for the terminal."""
        rows = {**self.by_kind, "all questions": self.overall}
        width = max(len(name) for name in rows)
        lines = []
        for name, tally in rows.items():
            low, high = wilson_interval(tally.correct, tally.total)
            interval = f"95 % interval {low:.1%}–{high:.1%}"
            lines.append(f"{name:<{width}}  {tally.accuracy:6.1%}  ({tally.correct}/{tally.total}, {interval})")
        if self.rejects:
            most = sorted(self.by_reason.items(), key=lambda pair: -pair[1])
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in most)
            lines.append(f"{self.rejects:,} skipped{': ' if reasons else ''}{reasons}; rejects.jsonl lists them")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """Write results.json."""
        facts = {
            "overall": self.overall.facts(),
            "by_kind": {kind: tally.facts() for kind, tally in self.by_kind.items()},
            "gate_weights": self.gate_weights,
            "seconds": round(self.seconds, 1),
            "rejects": self.rejects,
            "rejects_by_reason": self.by_reason,
        }
        with atomic_write(path) as file:
            json.dump(facts, file, indent=2)

    @classmethod
    def load(cls, path: Path) -> "EvaluationResult":
        """Read results.json.

        Raises:
            EvaluationError: it cannot be read.
        """
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                overall=_tally(facts["overall"]),
                by_kind={kind: _tally(tally) for kind, tally in facts["by_kind"].items()},
                gate_weights=facts["gate_weights"],
                seconds=facts["seconds"],
                rejects=facts["rejects"],
                # Results of older versions have the count only.
                by_reason=facts.get("rejects_by_reason", {}),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(f"{path} cannot be read: {error}; evaluate again") from error


@dataclass(frozen=True)
class Prediction:
    """One line of predictions.jsonl.

    Attributes:
        id, record, kind: id, record number and type of the question.
        question, expected, answer: its text, the expected answer and the model's answer.
        correct: whether the answer matches.
        image: the question's image.
        image_shown: the image shown to the model; differs from `image` if images were shuffled.
        alignment_weights: the gate weights.
    """

    id: str
    record: int
    kind: str | None
    question: str
    expected: str
    answer: str
    correct: bool
    image: str | None
    image_shown: str | None
    alignment_weights: tuple[float, ...] | None


def summarise(
    predictions: Sequence[Prediction], seconds: float = 0.0, rejects: Mapping[str, int] | None = None
) -> EvaluationResult:
    """Count correct answers, overall and by kind, and average the gate weights by kind.

    Args:
        predictions: the predictions for all questions asked.
        seconds: duration of the evaluation.
        rejects: number of skipped questions, by reason.
    """
    kinds: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        kinds[prediction.kind or WITHOUT_KIND].append(prediction)
    weights = {}
    for kind, members in sorted(kinds.items()):
        rows = [one.alignment_weights for one in members if one.alignment_weights is not None]
        if rows:
            weights[kind] = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    named = {kind: _count(members) for kind, members in sorted(kinds.items()) if kind != WITHOUT_KIND}
    by_reason = dict(rejects or {})
    return EvaluationResult(_count(predictions), named, weights, seconds, sum(by_reason.values()), by_reason)


def read_predictions(path: Path) -> dict[int, Prediction]:
    """The predictions in a file, by record; incomplete lines left by an interruption are removed from the file."""
    if not path.is_file():
        return {}
    whole, kept = {}, []
    content = path.read_text(encoding="utf-8", errors="replace")
    # Not splitlines: a question may contain other line separators (U+2028), which JSON does not escape.
    for line in content.split("\n"):
        try:
            facts: dict[str, Any] = json.loads(line)
            weights = facts.pop("alignment_weights")
            prediction = Prediction(**facts, alignment_weights=None if weights is None else tuple(weights))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        whole[prediction.record] = prediction
        kept.append(line + "\n")
    if "".join(kept) != content:
        with atomic_write(path) as file:
            file.writelines(kept)
    return whole


def _count(predictions: Sequence[Prediction]) -> Tally:
    return Tally(sum(prediction.correct for prediction in predictions), len(predictions))


def _tally(facts: dict[str, Any]) -> Tally:
    return Tally(int(facts["correct"]), int(facts["total"]))
