"""The evaluations below a run folder: their accuracies, the differences between them, and their answers."""

import json
import os
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from aligngpt.evaluation.benchmarks.asking import ASKED_FILE
from aligngpt.evaluation.fingerprint import WEIGHTS, state_of_model
from aligngpt.evaluation.results import (
    PREDICTIONS_FILE,
    RESULTS_FILE,
    EvaluationResult,
    Prediction,
    Tally,
    is_evaluation,
    pictures_of,
    read_predictions,
)
from aligngpt.reports.sections import AccuracyRow, AnswerExample, DifferenceRow
from aligngpt.reports.statistics import difference_interval

OWN = "AlignGPT"
PHOTOGRAPHS = "photographs"
ANSWERS_OF_EACH = 12
TRAINED_ON = "the questions that the model was trained on"


@dataclass(frozen=True)
class RunEvaluation:
    """One evaluation of a run.

    Attributes:
        name: its folder below `evaluation` in the run, or below the run; `evaluation` for that folder itself.
        folder: contains `results.json` and `predictions.jsonl`.
        result: its results.
        image_root: folder of its images; None if that no longer exists, or the images are stored in an archive.
        model: name of its model if that is not the run's own; None for the run's own.
    """

    name: str
    folder: Path
    result: EvaluationResult
    image_root: Path | None
    model: str | None = None

    @property
    def shuffled(self) -> bool:
        """Whether the questions were shown other questions' images."""
        return self.name == "shuffled" if self.result.asked is None else self.result.asked.shuffled

    @property
    def system(self) -> str:
        """The name of its model on the page."""
        return OWN if self.model is None else self.model

    @property
    def title(self) -> str:
        """Its name on the page if it is not the main evaluation."""
        if self.shuffled:
            return f"{self.system}, images shuffled" + ("" if self.name == "shuffled" else f" ({self.name})")
        return f"{self.system}, {self.name}"

    @cached_property
    def predictions(self) -> dict[int, Prediction]:
        """Its predictions, by record."""
        return read_predictions(self.folder / PREDICTIONS_FILE)


def find_evaluations(run: Path) -> tuple[list[RunEvaluation], list[str]]:
    """Find all evaluations below a run folder.

    Returns:
        The evaluations, those of the run's own model first and of them the main one (`test`, if there is one), and a
        sentence on each one that cannot be shown, or not in full.

    Raises:
        EvaluationError: results beside predictions are damaged.
    """
    found, notes = [], []
    for place, folders, files in os.walk(run):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folder = Path(place)
        name = _name(run, folder)
        if PREDICTIONS_FILE in files and (ASKED_FILE in files or _is_list(folder / RESULTS_FILE)):
            notes.append(
                f"The benchmark {name} is not shown; once finished, its figures are in table.md beside its folder."
            )
        elif RESULTS_FILE in files and (PREDICTIONS_FILE in files or is_evaluation(folder / RESULTS_FILE)):
            result = EvaluationResult.load(folder / RESULTS_FILE)
            if _has_changed_since(run, folder, result):
                notes.append(
                    f"The evaluation {name} is not shown: the weights in this run's model folder have changed since, "
                    "by training again or by copying without their times; evaluate again into another folder, or "
                    "remove it."
                )
                continue
            root = _image_root(run, name, result)
            found.append(RunEvaluation(name, folder, result, root, _other_model(run, result)))
            if root is None:
                notes.append(_without_images(name, result))
            if PREDICTIONS_FILE not in files:
                notes.append(f"The evaluation {name} has no {PREDICTIONS_FILE}, so its answers are not shown.")
        elif PREDICTIONS_FILE in files:
            notes.append(f"The evaluation {name} is not finished; run the same `aligngpt evaluate` again to finish it.")
    order = {"test": 0, "evaluation": 1, PHOTOGRAPHS: 4}
    found.sort(key=lambda one: (one.model is not None, 3 if one.shuffled else order.get(one.name, 2), one.name))
    return found, notes


def main_evaluation(evaluations: Sequence[RunEvaluation]) -> RunEvaluation | None:
    """The evaluation that the report is about: the first one with answers, images not shuffled."""
    return next((one for one in evaluations if not one.shuffled and one.result.overall.total), None)


def shuffled_baselines(evaluations: Sequence[RunEvaluation]) -> list[RunEvaluation]:
    """The evaluations that asked the main one's model the same questions about other questions' images."""
    main = main_evaluation(evaluations)
    return [] if main is None else [one for one in evaluations if one.shuffled and _same_asked(main, one)]


def run_of(out: Path) -> Path | None:
    """The run folder that an evaluation's folder lies in; None if it is in no run."""
    parts = ("pretrain", "instruct", "model", "run.json")
    # The working directory's own parents are not searched: they are not what the command named.
    return next((one for one in out.parents if one != Path() and any((one / part).exists() for part in parts)), None)


def accuracy_rows(evaluations: Sequence[RunEvaluation], baselines: dict[str, Any]) -> list[AccuracyRow]:
    """The accuracies: the main evaluation, its kinds of question, baselines, then the others.

    Args:
        evaluations: see `find_evaluations`.
        baselines: for each name the facts of its tally (see `Tally.facts`) and a `note`.
    """
    main = main_evaluation(evaluations)
    rows: list[AccuracyRow] = []
    others: list[AccuracyRow] = []
    if main is not None:
        note = "" if main.name in ("test", "evaluation") else main.name
        rows.append(_row(main.system, main.result.overall, note=_with_origin(note, main)))
        rows += [_row(kind, tally, part=True) for kind, tally in main.result.by_kind.items() if tally.total]
    compared = shuffled_baselines(evaluations)
    for one in evaluations:
        if one is main or not one.result.overall.total:
            continue
        if one.shuffled:
            baseline = one in compared
            note = "each question with another question's image"
            (rows if baseline else others).append(_row(one.title, one.result.overall, note=note, baseline=baseline))
        else:
            note = "natural images, not part of the training data" if one.name == PHOTOGRAPHS else ""
            others.append(_row(one.title, one.result.overall, note=_with_origin(note, one)))
    for name, facts in baselines.items():
        rows.append(_row(name, Tally.of_facts(facts), note=facts["note"], baseline=True))
    return rows + others


def difference_rows(evaluations: Sequence[RunEvaluation], baselines: dict[str, Any]) -> list[DifferenceRow]:
    """The differences of the main evaluation from each baseline, on the questions that both answered.

    A baseline is one of `shuffled_baselines`, or one of `baselines` that lists the records it answers right in `right`
    (and so has answered all others wrong).
    """
    main = main_evaluation(evaluations)
    if main is None:
        return []
    rows = []
    for one in shuffled_baselines(evaluations):
        both = [
            (own, other.correct)
            for record, own in main.predictions.items()
            if (other := one.predictions.get(record)) is not None and _same_question(own, other)
        ]
        rows += _difference(one.title, both)
    for name, tally in baselines.items():
        if "right" in tally:
            right = frozenset(tally["right"])
            rows += _difference(name, [(own, own.record in right) for own in main.predictions.values()])
    return rows


def answer_examples(evaluations: Sequence[RunEvaluation]) -> list[AnswerExample]:
    """A random sample of right and wrong answers of the main evaluation, then all answers about photographs."""
    rng = random.Random(0)
    main = main_evaluation(evaluations)
    examples = []
    if main is not None and main.name != PHOTOGRAPHS:
        for correct in (True, False):
            members = [one for one in main.predictions.values() if one.correct is correct]
            chosen = rng.sample(members, min(ANSWERS_OF_EACH, len(members)))
            examples += [_example(one, main.image_root, one.kind) for one in chosen]
    for evaluation in evaluations:
        if evaluation.name == PHOTOGRAPHS:
            shown: Collection[Prediction] = evaluation.predictions.values()
            examples += [_example(one, evaluation.image_root, one.kind or PHOTOGRAPHS) for one in shown]
    return examples


def _row(name: str, tally: Tally, *, note: str = "", baseline: bool = False, part: bool = False) -> AccuracyRow:
    return AccuracyRow.from_counts(
        name,
        tally.correct,
        tally.total,
        interval=tally.interval,
        by_picture=tally.by_picture,
        note=note,
        baseline=baseline,
        part=part,
    )


def _with_origin(note: str, one: RunEvaluation) -> str:
    """The note, and that the model was trained on the questions if it was."""
    trained_on = one.result.asked is not None and one.result.asked.trained_on
    return ", ".join(filter(None, (note, TRAINED_ON if trained_on else "")))


def _difference(name: str, both: Sequence[tuple[Prediction, bool]]) -> list[DifferenceRow]:
    """One row, or none if there is no question that both answered."""
    if not both:
        return []
    pictures = pictures_of([own for own, _ in both])
    found = difference_interval([own.correct for own, _ in both], [other for _, other in both], pictures)
    return [DifferenceRow(name, found.value, found.low, found.high, len(both), len(set(pictures)) < len(both))]


def _same_question(first: Prediction, second: Prediction) -> bool:
    return (first.id, first.question, first.expected) == (second.id, second.question, second.expected)


def _example(one: Prediction, root: Path | None, kind: str | None) -> AnswerExample:
    shown = root is not None and one.image_shown is not None
    return AnswerExample(
        image_path=one.image_shown if shown else None,
        question=one.question,
        expected=one.expected,
        answer=one.answer,
        correct=one.correct,
        kind=kind,
        image_root=str(root) if shown else None,
    )


def _name(run: Path, folder: Path) -> str:
    parts = folder.relative_to(run).parts
    if parts[:1] == ("evaluation",) and len(parts) > 1:
        parts = parts[1:]
    return "/".join(parts) or run.resolve().name


def _is_list(results: Path) -> bool:
    """Whether a results.json is of a benchmark."""
    try:
        return isinstance(json.loads(results.read_text(encoding="utf-8")), list)
    except (OSError, ValueError):
        return False


def _other_model(run: Path, result: EvaluationResult) -> str | None:
    """The end of the path of an evaluation's model, if it is not the run's own."""
    own = _own_model(run)
    if result.asked is None or not own.is_dir():
        return None
    model = Path(result.asked.model)
    end = model.parts[-2:]
    moved = not model.exists() and end == own.parts[-2:]
    return None if moved or model.resolve() == own.resolve() else "/".join(end)


def _has_changed_since(run: Path, folder: Path, result: EvaluationResult) -> bool:
    """Whether an evaluation is of the run's own model folder, which then had other weights than today."""
    own, asked = _own_model(run), result.asked
    # Of a run that moved this is not known: its files may have the times of the copy.
    if not own.is_dir() or (asked is not None and Path(asked.model).resolve() != own.resolve()):
        return False
    if asked is not None and asked.model_state is not None:
        return asked.model_state != state_of_model(own)
    evaluated = (folder / RESULTS_FILE).stat().st_mtime_ns
    return any(path.suffix in WEIGHTS and path.stat().st_mtime_ns > evaluated for path in own.iterdir())


def _own_model(run: Path) -> Path:
    root = run.resolve()
    # The quickstart gives the folder of its evaluations.
    return (root.parent if root.name == "evaluation" else root) / "model"


def _same_asked(first: RunEvaluation, second: RunEvaluation) -> bool:
    """Whether two evaluations asked one model the same questions; assumed of results of older versions."""
    one, other = first.result.asked, second.result.asked
    if one is None or other is None:
        return True
    same_model = Path(one.model).resolve() == Path(other.model).resolve()
    return same_model and (one.questions, one.image_root) == (other.questions, other.image_root)


def _image_root(run: Path, name: str, result: EvaluationResult) -> Path | None:
    """The evaluation's own image root; the quickstart's folder in the run if that moved, or for older results."""
    if result.asked is not None and result.asked.archived:
        return None
    if result.asked is not None and (root := Path(result.asked.image_root)).is_dir():
        return root
    own = run / (PHOTOGRAPHS if name == PHOTOGRAPHS else "data")
    return own if own.is_dir() else None


def _without_images(name: str, result: EvaluationResult) -> str:
    if result.asked is None:
        return (
            f"The images of the evaluation {name} are not shown: its results are of an older version and do not name "
            "their image root; run the same `aligngpt evaluate` again to add it."
        )
    if result.asked.archived:
        return f"The images of the evaluation {name} are not shown: they are stored in Parquet or tar files."
    return f"The images of the evaluation {name} are not shown: its image root {result.asked.image_root} is gone."
