"""The HTML report of a run folder: scores, training and evaluations on one page, as far as they exist."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from aligngpt.evaluation.run_evaluations import (
    OWN,
    RunEvaluation,
    accuracy_rows,
    answer_examples,
    difference_rows,
    find_evaluations,
    main_evaluation,
    shuffled_baselines,
)
from aligngpt.evaluation.run_levels import ReportingError, levels_section, read_json, recipe_of_run
from aligngpt.reports.curves import METRICS_FILE, ReferenceRun, accuracy_curve_of, logged, loss_curve_of, read_reference
from aligngpt.reports.report import ReportData, build_report
from aligngpt.reports.sections import AccuracyCurve, GateSection, LossCurve, TimingRow
from aligngpt.training.recipe import recipe_path
from aligngpt.training.recipe_files import RecipeError
from aligngpt.training.run_card import add_results

STAGES = {"pretrain": "Stage 1: pre-training", "instruct": "Stage 2: instruction tuning"}
GIBIBYTE = 2**30


def write_report(run: Path, out: Path | None = None, *, reference: Path | None = None) -> Path:
    """Write the report of a run folder written by `aligngpt quickstart` or `aligngpt train`.

    The accuracies of the run's own model are also added to its card, if that has a place for them.

    Args:
        run: the folder; reads `captions.json`, `scores/`, `pretrain/`, `instruct/`, `separation.json`,
            `baselines.json`, `recipe.yaml` and `run.json`, as far as they exist, and all evaluations below it.
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
    evaluations, notes = find_evaluations(run)
    baselines = read_json(run / "baselines.json") or {}
    levels, about_levels = levels_section(run)
    report = ReportData(
        title=f"AlignGPT: {run.resolve().name}",
        accuracies=accuracy_rows(evaluations, baselines),
        differences=difference_rows(evaluations, baselines),
        levels=levels,
        curves=_curves(run, behind),
        growth=_growth(run, behind),
        warm_start=_warm_start(run),
        gate=_gate(run, main_evaluation(evaluations)),
        answers=answer_examples(evaluations),
        timings=_timings(run, evaluations),
        facts=_facts(run),
        notes=[*notes, *about_levels, *_missing_parts(run, evaluations)],
    )
    if not (report.accuracies or report.levels or report.curves):
        raise ReportingError(f"{run} contains no scores, no training and no evaluation; give a run folder")
    target = out or run / "report.html"
    build_report(report, target, image_root=run)
    own = [one for one in evaluations if one.model is None]
    if main_evaluation(own) is not None:
        rows = accuracy_rows(own, baselines)
        add_results(run / "model", [replace(row, name=f"{OWN}: {row.name}") if row.part else row for row in rows])
    return target


def _missing_parts(run: Path, evaluations: Sequence[RunEvaluation]) -> list[str]:
    """A sentence on each part of a run that is not there."""
    notes = []
    for number, stage in enumerate(STAGES, 1):
        if not (run / stage / METRICS_FILE).is_file():
            notes.append(f"The loss of stage {number} is not shown: there is no {stage}/{METRICS_FILE}.")
    if not evaluations:
        notes.append(
            "Not evaluated yet: `aligngpt evaluate` with a folder below the run's `evaluation` folder as --out adds it."
        )
        return notes
    if (main := main_evaluation(evaluations)) is not None and main.model is not None:
        notes.append(
            f"No evaluation is of the run's own model, so the page is about {main.model}: "
            f"`aligngpt evaluate {run / 'model'}` with the same questions adds it."
        )
    if not shuffled_baselines(evaluations):
        notes.append(
            "There is no evaluation of the same questions with --shuffle-images, so the page does not say how much the "
            "text alone gives away."
        )
    return notes


def _packaged_curves(run: Path) -> Path | None:
    """The packaged curves of this run's recipe; only the quickstart writes `run.json`, so its file is the one used."""
    settings = read_json(run / "run.json")
    if settings is None:
        return None
    data = settings.get("data", "easy-vqa")
    path = recipe_path("curves/quickstart" if data == "easy-vqa" else f"curves/quickstart-{data}").with_suffix(".jsonl")
    return path if path.is_file() else None


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
    found = read_json(run / "pretrain" / "warm_start.json")
    if found is None:
        return None
    return (
        f"Before stage 1 the projector had a warm start of {found['seconds']:.0f} s, not part of the paper. It "
        f"moved the image tokens towards the words of their captions (mean squared distance {found['before']:.4f} "
        f"before, {found['after']:.4f} after)."
    )


def _gate(run: Path, main: RunEvaluation | None) -> GateSection | None:
    if main is None or not main.result.gate_weights:
        return None
    result = main.result
    kinds = list(result.gate_weights)
    # Results of older versions do not say how many questions were averaged, only how many were asked.
    counts = [result.gate_counts.get(kind, result.by_kind.get(kind, result.overall).total) for kind in kinds]
    mode = _alignment(run) if main.model is None else None
    return GateSection(kinds, [result.gate_weights[kind] for kind in kinds], counts, mode)


def _alignment(run: Path) -> str | None:
    """How the run's model forms its alignment embedding; None if neither its configuration nor a recipe says so."""
    if (config := read_json(run / "model" / "config.json")) is not None and "alignment" in config:
        return str(config["alignment"])
    try:
        recipe = recipe_of_run(run)
    except RecipeError:
        return None
    return None if recipe is None else recipe.model.alignment


def _timings(run: Path, evaluations: Sequence[RunEvaluation]) -> list[TimingRow]:
    steps = (read_json(run / "run.json") or {}).get("steps", {})
    if steps:
        return [
            TimingRow(name, step["seconds"], step.get("samples"), _gibibytes(step["peak_memory"]))
            for name, step in steps.items()
        ]
    rows = []
    for stage, name in STAGES.items():
        if result := read_json(run / stage / "stage.json"):
            rows.append(TimingRow(name, result["seconds"], result["samples"], _gibibytes(result["peak_memory"])))
    return rows + [
        TimingRow(f"Evaluation: {one.name}", one.result.seconds, one.result.overall.total) for one in evaluations
    ]


def _gibibytes(peak: int | None) -> float | None:
    return None if peak is None else peak / GIBIBYTE


def _facts(run: Path) -> dict[str, str]:
    return {name: str(value) for name, value in (read_json(run / "run.json") or {}).get("facts", {}).items()}
