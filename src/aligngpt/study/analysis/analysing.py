"""From the results of a study to everything that its page says."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aligngpt.study.analysis.contrasts import (
    BOUNDS,
    PRIMARY,
    Bounds,
    Contrast,
    Part,
    parts_of,
    primary_contrasts,
    secondary_contrasts,
)
from aligngpt.study.analysis.falsifiers import Falsifier, falsifiers
from aligngpt.study.analysis.gaps import gaps
from aligngpt.study.analysis.gates import Gate, gates
from aligngpt.study.analysis.loading import Condition, Results, load_results
from aligngpt.study.analysis.outcomes import ACCURACY, LOG_PROBABILITY, SQUARED_ERROR, Outcome, calibration_error
from aligngpt.study.analysis.predictions import Prediction, predictions
from aligngpt.study.analysis.probes import (
    Detector,
    DoseResponse,
    EncoderDetector,
    detectors,
    dose_responses,
    encoder_detector,
)
from aligngpt.study.analysis.student import Estimate, estimate
from aligngpt.study.arms import ARMS
from aligngpt.study.pairs import StudyError
from aligngpt.study.plan import Run


class Level(NamedTuple):
    """What the runs of a condition reach on the first test: means over seeds with intervals."""

    condition: Condition
    log_probability: Estimate
    accuracy: Estimate
    squared_error: Estimate
    calibration: Estimate


class Cost(NamedTuple):
    """Processor seconds: the median of a pre-training and of a run, and of all together."""

    pretraining: float
    run: float
    total: float
    pretrainings: int
    runs: int


@dataclass(frozen=True)
class Analysis:
    """The findings of a study.

    Attributes:
        results: what was analysed.
        pairs: the primary pairs of arms.
        bounds: the smallest differences that matter.
        baseline: the arm that all others are compared with in the secondary contrasts.
        primary: primary contrasts, with Holm's correction.
        absent: primary contrasts without a common seed: first arm, second arm, share of bad captions.
        parts: primary contrasts at the highest share of bad captions, by kind of question and on the other tests.
        secondary: every other condition against the baseline, without correction.
        levels: what each condition reaches.
        dose, detectors, encoder: what the levels do to captions.
        gates: the gate's weights.
        predictions: what was expected, and what came out.
        falsifiers: the findings that would speak against the method.
        cost: processor seconds.
        missing: what is missing, in sentences.
        quick: whether the study is too small to conclude anything.
        planned: number of runs of the plan, with which `missing` compares; 0 if it is not known, and conditions are
            compared with the one that has the most seeds.
        undone: number of these that are not done.
    """

    results: Results
    pairs: tuple[tuple[str, str], ...]
    bounds: Bounds
    baseline: str
    primary: list[Contrast]
    absent: list[tuple[str, str, float]]
    parts: list[Part]
    secondary: list[Contrast]
    levels: list[Level]
    dose: list[DoseResponse]
    detectors: list[Detector]
    encoder: EncoderDetector | None
    gates: list[Gate]
    predictions: list[Prediction]
    falsifiers: list[Falsifier]
    cost: Cost
    missing: list[str]
    quick: bool = False
    planned: int = 0
    undone: int = 0


def analyse(
    results: Path,
    *,
    pairs: Sequence[tuple[str, str]] = PRIMARY,
    bounds: Bounds = BOUNDS,
    planned: Sequence[Run] = (),
    quick: bool = False,
) -> Analysis:
    """Analyse the results of a study; no model is needed.

    Args:
        results: folder of results, or one file of all; the questions' file lies in the folder or beside it.
        pairs: pairs of arms whose difference the study is about (`primary` of its plan).
        bounds: the smallest differences that matter.
        planned: the runs of the plan (`Plan.runs`): says what is missing, and where a primary pair is expected;
            without, at every share of bad captions.
        quick: label the findings as too small to conclude anything.

    Raises:
        StudyError: there are no results, they cannot be used, or a pair names an unknown arm.
    """
    return analyse_results(load_results(results), pairs=pairs, bounds=bounds, planned=planned, quick=quick)


def analyse_results(
    results: Results,
    *,
    pairs: Sequence[tuple[str, str]] = PRIMARY,
    bounds: Bounds = BOUNDS,
    planned: Sequence[Run] = (),
    quick: bool = False,
) -> Analysis:
    """The same for results that were read already; see `analyse`."""
    if not pairs:
        raise StudyError("the plan names no primary pair of arms; add e.g. `primary: [[adaptive, none]]`")
    if unknown := [name for pair in pairs for name in pair if name not in ARMS]:
        raise StudyError(f"the primary pairs name an unknown arm {unknown[0]}; there are {', '.join(ARMS)}")
    primary, absent = primary_contrasts(results, pairs, bounds, planned=planned)
    baseline = "none" if any(condition.arm == "none" for condition in results.runs) else pairs[0][1]
    known = {(one.first, one.second) for one in primary}
    dose, found = dose_responses(results), detectors(results)
    return Analysis(
        results,
        tuple(pairs),
        bounds,
        baseline,
        primary,
        absent,
        [part for one in primary if one.first.noise == results.noises[-1] for part in parts_of(results, one)],
        [one for one in secondary_contrasts(results, baseline) if (one.first, one.second) not in known],
        [_reached(results, condition) for condition in results.runs],
        dose,
        found,
        encoder_detector(results),
        gates(results),
        predictions(results, dose, bounds),
        falsifiers(results, dose, found, bounds),
        _cost(results),
        gaps(results, absent, planned),
        quick,
        len(planned),
        sum(not _is_done(results, run) for run in planned),
    )


def _is_done(results: Results, run: Run) -> bool:
    condition = Condition(run.arm_name, round(run.noise, 6), run.levels, run.answers)
    return run.seed in results.runs.get(condition, {}) or run.seed in results.failed.get(condition, {})


def _reached(results: Results, condition: Condition) -> Level:
    answered = [run.answers[results.questions.first] for run in results.runs[condition].values()]

    def mean(outcome: Outcome) -> Estimate:
        return estimate([outcome.of(one).mean() for one in answered])

    calibration = estimate([calibration_error(one) for one in answered])
    return Level(condition, mean(LOG_PROBABILITY), mean(ACCURACY), mean(SQUARED_ERROR), calibration)


def _cost(results: Results) -> Cost:
    of_runs = np.array([run.cpu_seconds for seeds in results.runs.values() for run in seeds.values()])
    before = np.array([one.cpu_seconds for seeds in results.pretrainings.values() for one in seeds.values()])
    return Cost(_median(before), _median(of_runs), float(of_runs.sum() + before.sum()), len(before), len(of_runs))


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")
