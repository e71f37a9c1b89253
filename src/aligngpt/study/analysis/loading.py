"""The results of a study, checked: what each run answered, and what each pre-training made of the probe captions."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aligngpt.study.analysis.questions import Questions
from aligngpt.study.arms import ARMS
from aligngpt.study.pairs import StudyError
from aligngpt.study.results import FAILED, read_rows

Floats = NDArray[np.float64]
MEASURED = ("log_probability", "right", "confidence", "first_right")
# A logarithm of a softmax of floats of 32 bits may be this much above 0.
ROUNDING = 1e-3


class Condition(NamedTuple):
    """What runs that differ only in their seed have in common.

    Attributes:
        arm: name of the arm; for pre-trainings, `Arm.pretraining`.
        noise: share of bad captions, 0…1.
        levels: N; 2 where it makes no difference.
        answers: answers in instruction tuning; None for all.
    """

    arm: str
    noise: float
    levels: int
    answers: int | None = None


@dataclass(frozen=True)
class Answered:
    """How a run answered the questions of one test, each `(questions,)`; see `aligngpt.study.measuring.Answers`."""

    log_probability: Floats
    right: Floats
    confidence: Floats
    first_right: Floats


@dataclass(frozen=True)
class RunResult:
    """One run: its answers by test, mean gate weights by kind of question `(N - 1,)`, and processor seconds."""

    name: str
    answers: dict[str, Answered]
    gate: dict[str, Floats] = field(default_factory=dict)
    cpu_seconds: float = math.nan


@dataclass(frozen=True)
class PretrainingResult:
    """One pre-training: log-probabilities of captions, in nats; None where they were not measured.

    Attributes:
        name: of the result.
        right, wrong: at each level, `(levels, captions)`; one row for a pre-training without levels.
        right_blank, wrong_blank: with a blank picture, `(captions,)`; only without levels.
        cpu_seconds: processor seconds.
    """

    name: str
    right: Floats | None = None
    wrong: Floats | None = None
    right_blank: Floats | None = None
    wrong_blank: Floats | None = None
    cpu_seconds: float = math.nan


@dataclass(frozen=True)
class Results:
    """All results of a study.

    Attributes:
        questions: what is known about the questions.
        runs, pretrainings: by condition, then by seed.
        codes: the versions of the code that made them.
        failed: why a run has no result, by condition, then by seed.
    """

    questions: Questions
    runs: dict[Condition, dict[int, RunResult]]
    pretrainings: dict[Condition, dict[int, PretrainingResult]]
    codes: tuple[str, ...] = ()
    failed: dict[Condition, dict[int, str]] = field(default_factory=dict)

    @cached_property
    def noises(self) -> list[float]:
        """The shares of bad captions, ascending."""
        return sorted({condition.noise for condition in self.runs})

    @cached_property
    def levels(self) -> int:
        """The number of levels N that most runs with levels have; the larger one of two."""
        found = _most(condition.levels for condition in self._each_run() if ARMS[condition.arm].has_levels)
        return 2 if found is None else int(found)

    @cached_property
    def answers(self) -> int | None:
        """The number of answers that most runs are tuned on; None for all."""
        # Of two numbers of answers that as many runs have, the larger; all answers are more than any number.
        found = _most(math.inf if condition.answers is None else condition.answers for condition in self._each_run())
        return None if found is None or found == math.inf else int(found)

    @cached_property
    def has_shares(self) -> bool:
        """Whether the share of bad captions was chosen; of your own data it is not known, and written as 0."""
        return self.noises != [0.0]

    def levels_of(self, condition: Condition) -> str:
        """The number of levels for a table; a dash for an arm, or a pre-training, without."""
        return str(condition.levels) if _has_levels(condition.arm) else "–"

    def is_usual(self, condition: Condition) -> bool:
        """Whether an arm or a pre-training has the usual number of levels, or none."""
        return condition.levels == self.levels or not _has_levels(condition.arm)

    def share(self, noise: float) -> str:
        """A share of bad captions for a table; a dash if it was not chosen."""
        return f"{noise:.0%}" if self.has_shares else "–"

    def place(self, noise: float) -> str:
        """A share of bad captions in a sentence."""
        return f"at {noise:.0%} of bad captions" if self.has_shares else "on the captions as they are"

    def condition(self, arm: str, noise: float) -> Condition:
        """An arm with the usual number of levels and of answers."""
        return Condition(arm, noise, self.levels if ARMS[arm].has_levels else 2, self.answers)

    def pretraining(self, arm: str, noise: float) -> Condition:
        """The pre-training of an arm with the usual number of levels."""
        return Condition(ARMS[arm].pretraining, noise, self.levels if ARMS[arm].has_levels else 2)

    def _each_run(self) -> Iterable[Condition]:
        return (condition for condition, runs in self.runs.items() for _ in runs)


def load_results(path: Path) -> Results:
    """Read a folder of results, or one file of them, and the questions' file that belongs to it.

    Raises:
        StudyError: nothing is there, or a run lacks a value, has another number of questions than there are, has a
            value that is not finite, or is there twice; the message names the run.
    """
    return check_rows(read_rows(path), Questions.load(path))


def check_rows(rows: Iterable[Mapping[str, Any]], questions: Questions) -> Results:
    """The results in rows as `aligngpt.study.running` writes them; see `load_results`."""
    runs: dict[Condition, dict[int, RunResult]] = {}
    pretrainings: dict[Condition, dict[int, PretrainingResult]] = {}
    codes: set[str] = set()
    failed: dict[Condition, dict[int, str]] = {}
    for row in rows:
        name = str(row.get("run") or row.get("arm"))
        condition, seed = _condition(row, name)
        codes.add(str(row.get("code") or "unknown"))
        if row.get(FAILED):
            _add(failed, condition, seed, str(row[FAILED]), name)
        elif any(row.get(f"{split}_{value}") is not None for split in questions.splits for value in MEASURED):
            if condition.arm not in ARMS:
                raise StudyError(f"run {name}: there is no arm {condition.arm}; there are {', '.join(ARMS)}")
            _add(runs, condition, seed, _run(row, name, questions), name)
        elif condition.arm in {arm.pretraining for arm in ARMS.values()}:
            # A pre-training's row has the name of the run that it was made for.
            name = f"{condition.arm}-noise{round(100 * condition.noise)}-levels{condition.levels}-seed{seed}"
            _add(pretrainings, condition, seed, _pretraining(row, name, condition, questions), name)
        else:
            tests = ", ".join(questions.splits)
            raise StudyError(f"{name} has no answers to the tests {tests}; the questions' file is of another study")
    if not runs and failed:
        raise StudyError("every run stopped because its loss was not a number; lower the learning rates of the plan")
    if not runs:
        raise StudyError("no run is done yet, only pre-trainings; run the study to its end first")
    return Results(questions, dict(sorted(runs.items(), key=_order)), pretrainings, tuple(sorted(codes)), failed)


def _has_levels(name: str) -> bool:
    """Whether the number of levels makes a difference to an arm, or to a pre-training."""
    return any(arm.has_levels for arm in ARMS.values() if name in (arm.name, arm.pretraining))


def _order(item: tuple[Condition, Any]) -> tuple[int, float, int, float]:
    condition = item[0]
    answers = math.inf if condition.answers is None else condition.answers
    return list(ARMS).index(condition.arm), condition.noise, condition.levels, answers


def _condition(row: Mapping[str, Any], name: str) -> tuple[Condition, int]:
    try:
        answers = row.get("answers")
        answers = None if answers is None or answers != answers else int(answers)
        # A share that was stored as a float of 32 bits is still the same share.
        noise = round(float(row["noise"]), 6)
        return Condition(str(row["arm"]), noise, int(row["levels"]), answers), int(row["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"run {name}: arm, noise, levels or seed is missing or not a number ({error})") from error


def _add(found: dict[Condition, dict[int, Any]], condition: Condition, seed: int, result: Any, name: str) -> None:
    of_seed = found.setdefault(condition, {})
    if seed in of_seed:
        raise StudyError(f"{name} is in the results twice; remove one of the two files")
    of_seed[seed] = result


def _run(row: Mapping[str, Any], name: str, questions: Questions) -> RunResult:
    answers = {}
    for split, about in questions.splits.items():
        arrays = {value: _array(row, f"{split}_{value}", name, len(about.kind)) for value in MEASURED}
        for value in ("right", "confidence", "first_right"):
            if arrays[value].min() < 0 or arrays[value].max() > 1:
                raise StudyError(f"run {name}: {split}_{value} must be in 0…1; run it again")
        if arrays["log_probability"].max() > ROUNDING:
            raise StudyError(f"run {name}: {split}_log_probability has a probability above 1; run it again")
        answers[split] = Answered(**arrays)
    gate: dict[str, Floats] = {}
    if row.get("gate_by_kind") is not None:
        try:
            gate = {str(kind): np.asarray(row_, np.float64) for kind, row_ in json.loads(row["gate_by_kind"]).items()}
        except (TypeError, ValueError, AttributeError) as error:
            raise StudyError(f"run {name}: gate_by_kind is not JSON of weights by kind ({error})") from error
        if len({weights.shape for weights in gate.values()}) > 1 or any(w.ndim != 1 for w in gate.values()):
            raise StudyError(f"run {name}: gate_by_kind has rows of different lengths")
        if not all(np.isfinite(weights).all() for weights in gate.values()):
            raise StudyError(f"run {name}: gate_by_kind has a value that is not finite; run it again")
    return RunResult(name, answers, gate, _seconds(row))


def _pretraining(row: Mapping[str, Any], name: str, condition: Condition, questions: Questions) -> PretrainingResult:
    if row.get("captions_right") is None:
        return PretrainingResult(name, cpu_seconds=_seconds(row))
    if questions.probe is None:
        raise StudyError(f"{name} has probe captions, but the questions' file says nothing about them")
    captions = len(questions.probe.kind)
    tables = {}
    for which in ("right", "wrong"):
        flat = _array(row, f"captions_{which}", name)
        if len(flat) not in (captions, captions * condition.levels):
            expected = f"{captions} captions at 1 or {condition.levels} levels"
            raise StudyError(f"{name}: captions_{which} has {len(flat)} values; expected {expected}")
        tables[which] = flat.reshape(-1, captions)
        if row.get(f"captions_{which}_blank") is not None:
            tables[f"{which}_blank"] = _array(row, f"captions_{which}_blank", name, captions)
    return PretrainingResult(name, **tables, cpu_seconds=_seconds(row))


def _array(row: Mapping[str, Any], column: str, name: str, expected: int | None = None) -> Floats:
    values = row.get(column)
    if values is None:
        raise StudyError(f"run {name} has no {column}; run it again")
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or not np.isfinite(array := array.astype(np.float64).ravel()).all():
        raise StudyError(f"run {name}: {column} has a value that is missing or not finite; run it again")
    if expected is not None and len(array) != expected:
        raise StudyError(
            f"run {name}: {column} has {len(array)} values; expected {expected}, as in the questions' file"
        )
    return array


def _seconds(row: Mapping[str, Any]) -> float:
    value = row.get("cpu_seconds")
    return math.nan if value is None else float(value)


def _most(values: Iterable[float]) -> float | None:
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value)) if counts else None
