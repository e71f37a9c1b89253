"""The output of an evaluation: predictions and their accuracies."""

import json
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.reports.statistics import effective_total, wilson_interval

PREDICTIONS_FILE = "predictions.jsonl"
RESULTS_FILE = "results.json"
ALL_KINDS, WITHOUT_KIND = "all", "(without one)"
"""The group of questions without a kind: if no question has one, and if others have one."""

LONGEST = 120
WRONG_SHOWN = 3
WILSON = "Wilson"
CLUSTERED = "Wilson with the effective sample size, clustered by picture"
REASONS = {
    "missing": "missing image",
    "truncated": "truncated image",
    "empty": "empty image file",
    "not_an_image": "not an image",
    "too_large": "too large an image",
    "outside_root": "image outside the image root",
    "unanswered": "without an answer",
    "cannot_be_asked": "cannot be asked",
}
"""The reasons of rejects in the printed table; others are printed unchanged."""


class EvaluationError(AlignGPTError):
    """An evaluation cannot be run, or its folder contains a different one."""


@dataclass(frozen=True)
class Tally:
    """The number of correct answers, and what the 95 % interval of the accuracy is computed from.

    Two tallies are equal if their counts are.

    Attributes:
        correct: number of correct answers.
        total: number of answers.
        pictures: number of different pictures asked about; a question without one counts as its own. None if unknown,
            as in results of older versions.
        effective: number of independent answers that are worth as much, see `effective_total`; None for `total`.
    """

    correct: int
    total: int
    pictures: int | None = field(default=None, compare=False)
    effective: float | None = field(default=None, compare=False)

    @classmethod
    def of_answers(cls, correct: Sequence[bool], pictures: Sequence[Hashable]) -> "Tally":
        """Count answers, given for each whether it is correct and its picture (see `pictures_of`)."""
        values = [float(one) for one in correct]
        return cls(int(sum(values)), len(values), len(set(pictures)), effective_total(values, pictures))

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> "Tally":
        """The tally that `facts` was made from; older versions have only the counts."""
        pictures, effective = facts.get("pictures"), facts.get("effective_total")
        return cls(int(facts["correct"]), int(facts["total"]), pictures, effective)

    @property
    def accuracy(self) -> float:
        """Share of correct answers, 0…1; NaN without answers."""
        return self.correct / self.total if self.total else float("nan")

    @property
    def by_picture(self) -> bool:
        """Whether the interval counts pictures: several questions have the same one."""
        return self.pictures is not None and self.pictures < self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the 95 % interval, in 0…1: by picture (see `share_interval`), else Wilson's."""
        effective = self.effective if self.by_picture and self.effective is not None else float(self.total)
        return wilson_interval(self.accuracy * effective if self.total else 0.0, effective)

    def facts(self) -> dict[str, float | str | None]:
        """The entry in results.json."""
        low, high = self.interval
        return {
            "accuracy": self.accuracy,
            "correct": self.correct,
            "total": self.total,
            "low": low,
            "high": high,
            "interval": CLUSTERED if self.by_picture else WILSON,
            "pictures": self.pictures,
            "effective_total": self.effective if self.by_picture else self.total,
        }


@dataclass(frozen=True)
class AskedAbout:
    """What an evaluation asked; see `evaluate_file`.

    Attributes:
        model: absolute path of the model folder, or hub name; in results of older versions the path as it was given.
        questions: path of the file of questions.
        image_root: folder that the images of the predictions are relative to.
        shuffled: whether each question was shown another question's image.
        archived: whether the images are stored in Parquet or tar files.
        model_state: see `state_of_model`; None for a model of the hub and in results of older versions.
        trained_on: whether the model was trained on this file of questions, see `trained_on`.
    """

    model: str
    questions: str
    image_root: str
    shuffled: bool
    archived: bool = False
    model_state: str | None = None
    trained_on: bool = False


@dataclass(frozen=True)
class EvaluationResult:
    """The results of an evaluation.

    Attributes:
        overall: tally of all questions.
        by_kind: tally of each question type named in the file.
        gate_weights: mean gate weights of levels 1…N-1, by question type; see `WITHOUT_KIND` for the others.
        gate_counts: number of questions averaged in each entry of `gate_weights`; empty in results of older versions.
        seconds: duration of this run; interrupted earlier runs are not included.
        rejects: number of questions skipped because they could not be asked.
        by_reason: number of skipped questions by reason.
        asked: model, questions and image root; None in results of older versions.
    """

    overall: Tally
    by_kind: dict[str, Tally] = field(default_factory=dict)
    gate_weights: dict[str, list[float]] = field(default_factory=dict)
    gate_counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    rejects: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)
    asked: AskedAbout | None = None

    def table(self) -> str:
        """The accuracies and the number of skipped records, as lines for the terminal."""
        rows = {**self.by_kind, "all questions": self.overall}
        width = max(len(name) for name in rows)
        lines = []
        for name, tally in rows.items():
            low, high = tally.interval
            interval = f"95 % interval{', by picture,' if tally.by_picture else ''} {low:.1%}–{high:.1%}"
            lines.append(f"{name:<{width}}  {tally.accuracy:6.1%}  ({tally.correct}/{tally.total}, {interval})")
        if self.rejects:
            most = sorted(self.by_reason.items(), key=lambda pair: -pair[1])
            reasons = ", ".join(f"{count:,} {REASONS.get(reason, reason)}" for reason, count in most)
            records = f"{self.rejects:,} record{'s' if self.rejects > 1 else ''}"
            lines.append(f"{records} skipped{': ' if reasons else ''}{reasons}; rejects.jsonl lists them")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """Write results.json."""
        facts = {
            "overall": self.overall.facts(),
            "by_kind": {kind: tally.facts() for kind, tally in self.by_kind.items()},
            "gate_weights": self.gate_weights,
            "gate_counts": self.gate_counts,
            "seconds": round(self.seconds, 1),
            "rejects": self.rejects,
            "rejects_by_reason": self.by_reason,
            "asked": None if self.asked is None else asdict(self.asked),
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
                overall=Tally.of_facts(facts["overall"]),
                by_kind={kind: Tally.of_facts(tally) for kind, tally in facts["by_kind"].items()},
                gate_weights=facts["gate_weights"],
                gate_counts=facts.get("gate_counts", {}),
                seconds=facts["seconds"],
                rejects=facts["rejects"],
                # Results of older versions have the count only.
                by_reason=facts.get("rejects_by_reason", {}),
                asked=AskedAbout(**facts["asked"]) if facts.get("asked") else None,
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
    predictions: Sequence[Prediction],
    seconds: float = 0.0,
    rejects: Mapping[str, int] | None = None,
    asked: AskedAbout | None = None,
) -> EvaluationResult:
    """Count correct answers, overall and by kind, and average the gate weights by kind.

    Args:
        predictions: the predictions for all questions asked.
        seconds: duration of the evaluation.
        rejects: number of skipped questions, by reason.
        asked: see `EvaluationResult`.
    """
    kinds: dict[str | None, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        kinds[prediction.kind or None].append(prediction)
    named = {kind: members for kind, members in sorted(kinds.items(), key=lambda pair: pair[0] or "") if kind}
    groups = named | {WITHOUT_KIND if named else ALL_KINDS: kinds[None]}
    rows = {
        kind: [one.alignment_weights for one in members if one.alignment_weights is not None]
        for kind, members in groups.items()
    }
    by_reason = dict(rejects or {})
    return EvaluationResult(
        overall=_count(predictions),
        by_kind={kind: _count(members) for kind, members in named.items()},
        gate_weights={
            kind: [sum(column) / len(found) for column in zip(*found, strict=True)]
            for kind, found in rows.items()
            if found
        },
        gate_counts={kind: len(found) for kind, found in rows.items() if found},
        seconds=seconds,
        rejects=sum(by_reason.values()),
        by_reason=by_reason,
        asked=asked,
    )


def is_evaluation(path: Path) -> bool:
    """Whether a file is the results.json of an evaluation of a file: other programs use the name, too."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"overall", "by_kind"} <= content.keys()


def read_predictions(path: Path) -> dict[int, Prediction]:
    """The predictions in a file, by record; incomplete lines left by an interruption are passed over."""
    return {prediction.record: prediction for _, prediction in _complete_lines(_text(path))}


def drop_incomplete(path: Path) -> None:
    """Remove incomplete lines left by an interruption from a file of predictions; only for who writes the file."""
    content = _text(path)
    kept = "".join(line + "\n" for line, _ in _complete_lines(content))
    if kept != content:
        with atomic_write(path) as file:
            file.write(kept)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _complete_lines(content: str) -> Iterator[tuple[str, Prediction]]:
    # Not splitlines: a question may contain other line separators (U+2028), which JSON does not escape.
    for line in content.split("\n"):
        try:
            facts: dict[str, Any] = json.loads(line)
            weights = facts.pop("alignment_weights")
            yield line, Prediction(**facts, alignment_weights=None if weights is None else tuple(weights))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue


def wrong_answers(predictions: Collection[Prediction]) -> str:
    """The first wrong answers by record, one line each, for the terminal; empty if there is none."""
    wrong = sorted((one for one in predictions if not one.correct), key=lambda one: one.record)
    if not wrong:
        return ""
    shown = wrong[:WRONG_SHOWN]
    head = f"{len(wrong):,} wrong" + (f", the first {WRONG_SHOWN}" if len(wrong) > WRONG_SHOWN else "") + ":"
    lines = [f"  {_one_line(x.question)}  expected {_quoted(x.expected)}, given {_quoted(x.answer)}" for x in shown]
    return "\n".join([head, *lines])


def _quoted(text: str) -> str:
    return f"“{_one_line(text)}”" if text.strip() else "nothing"


def _one_line(text: str) -> str:
    """A text as one line of printable characters, at most `LONGEST` long."""
    line = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def pictures_of(predictions: Sequence[Prediction]) -> list[str | int]:
    """The picture that each question is about, for intervals by picture; a question without one is its own group.

    Of several images of a question, the first counts. With shuffled images it is the question's own, not the one shown.
    """
    return [one.record if one.image is None else one.image for one in predictions]


def _count(predictions: Sequence[Prediction]) -> Tally:
    return Tally.of_answers([one.correct for one in predictions], pictures_of(predictions))
