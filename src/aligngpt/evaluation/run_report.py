"""The HTML report of a run folder: scores, training and evaluations on one page, as far as they exist."""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligngpt.alignment.levels import AlignmentLevels, level_counts
from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.results import PREDICTIONS_FILE, RESULTS_FILE, EvaluationResult, Prediction, read_predictions
from aligngpt.reports.curves import METRICS_FILE, ReferenceRun, accuracy_curve_of, logged, loss_curve_of, read_reference
from aligngpt.reports.report import (
    AccuracyCurve,
    AccuracyRow,
    AnswerExample,
    GateSection,
    LevelExample,
    LevelsSection,
    LossCurve,
    ReportData,
    TimingRow,
    build_report,
)
from aligngpt.training.recipe import recipe_path
from aligngpt.training.run_card import add_results

STAGES = {"pretrain": "Stage 1: pre-training", "instruct": "Stage 2: instruction tuning"}
EXAMPLES_PER_LEVEL = 4
ANSWERS_OF_EACH = 12
GIBIBYTE = 2**30


class ReportingError(AlignGPTError):
    """A folder contains nothing to report on."""


def write_report(run: Path, out: Path | None = None, *, reference: Path | None = None) -> Path:
    """Write the report of a run folder written by `aligngpt quickstart` or `aligngpt train`.

    The accuracies are also added to the card of the run's model, if it has a place for them.

    Args:
        run: the folder; reads `captions.json`, `scores/`, `pretrain/`, `instruct/`, `evaluation/*/`,
            `separation.json`, `baselines.json` and `run.json`, as far as they exist.
        out: the HTML file; `report.html` in `run` when None.
        reference: run folder, or file of curves, to draw behind this run's curves; when None, the curves packaged
            with the quickstart's recipe for a quickstart run, and none for other runs.

    Returns:
        Path of the HTML file.

    Raises:
        ReportingError: the folder does not exist or contains no scores, training or evaluation.
        CurveError: there is no such reference.
    """
    if not run.is_dir():
        raise ReportingError(f"{run} is not a folder; give a run folder")
    if reference is None:
        reference = _packaged_curves(run)
    behind = None if reference is None else read_reference(reference)
    evaluations = _evaluations(run)
    tested = evaluations.get("test")
    accuracies = _accuracies(run, evaluations)
    report = ReportData(
        title=f"AlignGPT: {run.resolve().name}",
        accuracies=accuracies,
        levels=_levels(run),
        curves=_curves(run, behind),
        growth=_growth(run, behind),
        warm_start=_warm_start(run),
        gate=_gate(tested),
        answers=_answers(run),
        timings=_timings(run, evaluations),
        facts=_facts(run),
    )
    if not (report.accuracies or report.levels or report.curves):
        raise ReportingError(f"{run} contains no scores, no training and no evaluation; give a run folder")
    target = out or run / "report.html"
    build_report(report, target, image_root=run)
    if accuracies:
        add_results(run / "model", accuracies)
    return target


def _evaluations(run: Path) -> dict[str, EvaluationResult]:
    found = sorted((run / "evaluation").glob(f"*/{RESULTS_FILE}"))
    results = {path.parent.name: EvaluationResult.load(path) for path in found}
    # The regular evaluation comes first: the page compares it with the others.
    return dict(sorted(results.items(), key=lambda item: (item[0] != "test", item[0])))


def _accuracies(run: Path, evaluations: dict[str, EvaluationResult]) -> list[AccuracyRow]:
    names = {"test": "AlignGPT", "shuffled": "AlignGPT, images shuffled", "photographs": "AlignGPT, photographs"}
    notes = {
        "shuffled": "each question with another question's image",
        "photographs": "natural images, not part of the training data",
    }
    rows = [
        AccuracyRow.from_counts(
            names.get(name, name),
            result.overall.correct,
            result.overall.total,
            note=notes.get(name, ""),
            baseline=name == "shuffled",
        )
        for name, result in evaluations.items()
        if result.overall.total
    ]
    baselines = _read(run / "baselines.json") or {}
    rows += [
        AccuracyRow.from_counts(name, tally["correct"], tally["total"], note=tally["note"], baseline=True)
        for name, tally in baselines.items()
    ]
    tested = evaluations.get("test")
    kinds = tested.by_kind if tested else {}
    return rows + [
        AccuracyRow.from_counts(f"AlignGPT: {kind}", tally.correct, tally.total) for kind, tally in kinds.items()
    ]


def _levels(run: Path) -> LevelsSection | None:
    records = _read(run / "captions.json")
    if records is None or not (run / "scores" / "levels.json").is_file():
        return None
    levels = AlignmentLevels.load(run / "scores" / "levels.json")
    scores = [record["score"] for record in records]
    assigned = levels.assign(scores)
    of_level: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record, level in zip(records, assigned, strict=True):
        of_level[int(level)].append(record)
    rng = random.Random(0)
    examples = [
        LevelExample(
            level=level,
            image_path=str(Path("data") / record["image"]),
            caption=record["conversations"][-1]["value"],
            score=record["score"],
            note=record.get("caption_quality", ""),
        )
        for level in range(1, levels.num_levels + 1)
        for record in rng.sample(of_level[level], min(EXAMPLES_PER_LEVEL, len(of_level[level])))
    ]
    wrong = None
    if all("caption_quality" in record for record in records):
        wrong = [
            _share(of_level[level], lambda record: record["caption_quality"] == "wrong")
            for level in range(1, levels.num_levels + 1)
        ]
    return LevelsSection(
        scores=scores,
        borders=list(levels.borders),
        counts_per_level=[int(count) for count in level_counts(assigned, levels.num_levels)],
        examples=examples,
        wrong_share=wrong,
        auc=(_read(run / "separation.json") or {}).get("roc_auc"),
    )


def _packaged_curves(run: Path) -> Path | None:
    """The packaged curves of this run's recipe; only the quickstart writes `run.json`, so its file is the one used."""
    path = recipe_path("curves/quickstart").with_suffix(".jsonl")
    return path if (run / "run.json").is_file() and path.is_file() else None


def _curves(run: Path, reference: ReferenceRun | None) -> list[LossCurve]:
    curves = []
    for stage, name in STAGES.items():
        path = run / stage / METRICS_FILE
        if path.is_file():
            curves.append(loss_curve_of(stage, name, logged(path), reference))
    return [curve for curve in curves if curve.steps]


def _growth(run: Path, reference: ReferenceRun | None) -> AccuracyCurve | None:
    path = run / "instruct" / METRICS_FILE
    lines = logged(path) if path.is_file() else []
    return accuracy_curve_of("instruct", "validation questions", lines, reference)


def _warm_start(run: Path) -> str | None:
    found = _read(run / "pretrain" / "warm_start.json")
    if found is None:
        return None
    return (
        f"Before stage 1 the projector had a warm start of {found['seconds']:.0f} s, not part of the paper. It "
        f"moved the image tokens towards the words of their captions (mean squared distance {found['before']:.4f} "
        f"before, {found['after']:.4f} after)."
    )


def _gate(tested: EvaluationResult | None) -> GateSection | None:
    if tested is None or not tested.gate_weights:
        return None
    kinds = list(tested.gate_weights)
    counts = [tested.by_kind[kind].total if kind in tested.by_kind else tested.overall.total for kind in kinds]
    return GateSection(kinds, [tested.gate_weights[kind] for kind in kinds], counts)


def _answers(run: Path) -> list[AnswerExample]:
    """A random sample of correct and incorrect answers, followed by all answers about photographs."""
    rng = random.Random(0)
    tested = list(read_predictions(run / "evaluation" / "test" / PREDICTIONS_FILE).values())
    chosen = []
    for correct in (True, False):
        members = [one for one in tested if one.correct is correct]
        chosen += rng.sample(members, min(ANSWERS_OF_EACH, len(members)))
    photographs = read_predictions(run / "evaluation" / "photographs" / PREDICTIONS_FILE).values()
    return [_answer(one, "data") for one in chosen] + [_answer(one, "photographs") for one in photographs]


def _answer(prediction: Prediction, folder: str) -> AnswerExample:
    return AnswerExample(
        image_path=str(Path(folder) / prediction.image_shown) if prediction.image_shown else None,
        question=prediction.question,
        expected=prediction.expected,
        answer=prediction.answer,
        correct=prediction.correct,
        kind=prediction.kind or (folder if folder == "photographs" else None),
    )


def _timings(run: Path, evaluations: dict[str, EvaluationResult]) -> list[TimingRow]:
    steps = (_read(run / "run.json") or {}).get("steps", {})
    if steps:
        return [
            TimingRow(name, step["seconds"], step.get("samples"), step["peak_memory"] / GIBIBYTE)
            for name, step in steps.items()
        ]
    rows = []
    for stage, name in STAGES.items():
        if result := _read(run / stage / "stage.json"):
            rows.append(TimingRow(name, result["seconds"], result["samples"], result["peak_memory"] / GIBIBYTE))
    return rows + [
        TimingRow(f"Evaluation: {name}", result.seconds, result.overall.total) for name, result in evaluations.items()
    ]


def _facts(run: Path) -> dict[str, str]:
    return {name: str(value) for name, value in (_read(run / "run.json") or {}).get("facts", {}).items()}


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportingError(f"{path} is damaged: {error}") from error


def _share(records: Sequence[dict[str, Any]], wanted: Any) -> float:
    return sum(map(wanted, records)) / len(records) if records else float("nan")
