"""How much better one arm is than another, over the seeds that both have."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aligngpt.study.analysis.loading import Condition, Floats, Results, RunResult
from aligngpt.study.analysis.outcomes import ACCURACY, LOG_PROBABILITY, SQUARED_ERROR, Outcome, calibration_error
from aligngpt.study.analysis.student import DRAWS, Estimate, bootstrap, equivalence, estimate, holm, seeds_needed
from aligngpt.study.arms import ARMS
from aligngpt.study.plan import Run

SIGNIFICANT = 0.05
PRIMARY = (("adaptive", "none"), ("adaptive", "placebo"))
"""The pairs of arms that are compared where a plan names none."""

Verdict = Literal["helps", "harms", "makes no difference that matters", "inconclusive"]


class Bounds(NamedTuple):
    """The smallest differences that matter: of the log-probability in nats, and of the accuracy as a share."""

    nats: float = 0.02
    accuracy: float = 0.005


BOUNDS = Bounds()


@dataclass(frozen=True)
class Difference:
    """The mean difference of one outcome over seeds, first arm minus second.

    Attributes:
        estimate: with its t interval.
        adjusted_p: Holm's p-value among the primary contrasts; NaN for a contrast that is not primary.
        equivalence_p: of the two one-sided tests; NaN if they were not asked for.
        resampled: ends of the bootstrap interval over seeds and pictures; infinite if it was not computed.
        seeds_needed: number of seeds that find a difference of the bound's size, at the deviation found here, by a
            single test without Holm's correction.
    """

    estimate: Estimate
    adjusted_p: float = math.nan
    equivalence_p: float = math.nan
    resampled: tuple[float, float] = (-math.inf, math.inf)
    seeds_needed: int | None = None


@dataclass(frozen=True)
class Contrast:
    """Two conditions, compared on the same seeds and questions.

    Attributes:
        first, second: what is compared.
        seeds: the seeds that both have.
        log_probability, accuracy: the first and the second outcome.
        squared_error: difference of `SQUARED_ERROR`.
        calibration: difference of the expected calibration error; negative is better.
        correlation: of the two conditions' log-probability over the seeds; NaN for fewer than three. Where it is not
            above 0, pairing by seed does not make the difference vary less.
    """

    first: Condition
    second: Condition
    seeds: tuple[int, ...]
    log_probability: Difference
    accuracy: Difference
    squared_error: Estimate
    calibration: Estimate
    correlation: float

    @property
    def verdict(self) -> Verdict:
        """What the contrast says.

        It makes no difference that matters if both outcomes are equivalent; else it helps or harms if Holm's p-value
        of the log-probability is below 0.05; else it is inconclusive.
        """
        if max(self.log_probability.equivalence_p, self.accuracy.equivalence_p) < SIGNIFICANT:
            return "makes no difference that matters"
        if self.log_probability.adjusted_p < SIGNIFICANT:
            return "helps" if self.log_probability.estimate.value > 0 else "harms"
        return "inconclusive"


class Part(NamedTuple):
    """A contrast on a part of the questions, or on another test."""

    contrast: Contrast
    what: str
    questions: int
    log_probability: Estimate
    accuracy: Estimate


def contrast(results: Results, first: Condition, second: Condition) -> Contrast | None:
    """Compare two conditions on the first test; None if they have no seed in common."""
    seeds = common_seeds(results, first, second)
    if not seeds:
        return None
    split = results.questions.first
    ours, theirs = results.runs[first], results.runs[second]
    calibration = [
        calibration_error(ours[seed].answers[split]) - calibration_error(theirs[seed].answers[split]) for seed in seeds
    ]
    means = {
        outcome.name: estimate(_differences(ours, theirs, seeds, split, outcome).mean(axis=1))
        for outcome in (LOG_PROBABILITY, ACCURACY, SQUARED_ERROR)
    }
    return Contrast(
        first,
        second,
        seeds,
        Difference(means[LOG_PROBABILITY.name]),
        Difference(means[ACCURACY.name]),
        means[SQUARED_ERROR.name],
        estimate(calibration),
        _correlation(ours, theirs, seeds, split),
    )


def primary_contrasts(
    results: Results,
    pairs: Sequence[tuple[str, str]],
    bounds: Bounds,
    *,
    planned: Sequence[Run] = (),
    draws: int = DRAWS,
) -> tuple[list[Contrast], list[tuple[str, str, float]]]:
    """Every pair of arms at every share of bad captions, with the usual number of levels and of answers.

    Holm's correction is over these contrasts, separately for the first and the second outcome; contrasts that are
    missing, or whose spread cannot be estimated, are part of the family.

    Args:
        results: of the study.
        pairs: of arms.
        bounds: of equivalence.
        planned: the runs of the plan, if it is known: a pair is only expected where both arms are planned.
        draws: resamples of each bootstrap interval.

    Returns:
        The contrasts, and the pairs and shares that have no common seed.
    """
    found, absent = [], []
    places = {(run.arm_name, round(run.noise, 6)) for run in planned}
    for one, other in pairs:
        for noise in results.noises:
            if places and not {(one, noise), (other, noise)} <= places:
                continue
            both = contrast(results, results.condition(one, noise), results.condition(other, noise))
            if both is None:
                absent.append((one, other, noise))
            else:
                found.append(_with_tests(results, both, bounds, draws))
    # What is still to be run belongs to the family too.
    others = [1.0] * len(absent)
    of_first = holm([one.log_probability.estimate.p for one in found] + others)[: len(found)]
    of_second = holm([one.accuracy.estimate.p for one in found] + others)[: len(found)]
    adjusted = [
        replace(
            one,
            log_probability=replace(one.log_probability, adjusted_p=first),
            accuracy=replace(one.accuracy, adjusted_p=second),
        )
        for one, first, second in zip(found, of_first, of_second, strict=True)
    ]
    return adjusted, absent


def secondary_contrasts(results: Results, baseline: str) -> list[Contrast]:
    """Every condition against the baseline arm of the same noise and number of answers, without any correction."""
    found = []
    for condition in results.runs:
        levels = results.levels if ARMS[baseline].has_levels else 2
        other = Condition(baseline, condition.noise, levels, condition.answers)
        both = None if condition == other else contrast(results, condition, other)
        if both is not None:
            found.append(both)
    return found


def parts_of(results: Results, whole: Contrast) -> list[Part]:
    """A contrast by scope and kind of question, and on the other tests."""
    ours, theirs = results.runs[whole.first], results.runs[whole.second]
    found = []
    for name, split in results.questions.splits.items():
        everything = np.ones(len(split.kind), dtype=bool)
        masks: dict[str, NDArray[np.bool_]] = {}
        if name == results.questions.first:
            masks |= {f"scope: {scope}": np.array(split.scope) == scope for scope in sorted(set(split.scope)) if scope}
            masks |= {f"kind: {kind}": np.array(split.kind) == kind for kind in sorted(set(split.kind)) if kind}
        else:
            masks[f"test: {name}"] = everything
        tables = [_differences(ours, theirs, whole.seeds, name, outcome) for outcome in (LOG_PROBABILITY, ACCURACY)]
        for what, mask in masks.items():
            estimates = [estimate(table[:, mask].mean(axis=1)) for table in tables]
            found.append(Part(whole, what, int(mask.sum()), *estimates))
    return found


def common_seeds(results: Results, *conditions: Condition) -> tuple[int, ...]:
    """The seeds that all conditions have, ascending."""
    sets = [set(results.runs.get(condition, ())) for condition in conditions]
    return tuple(sorted(set.intersection(*sets)))


def _with_tests(results: Results, both: Contrast, bounds: Bounds, draws: int) -> Contrast:
    split = results.questions.first
    images = results.questions.splits[split].image
    ours, theirs = results.runs[both.first], results.runs[both.second]

    def tested(difference: Difference, outcome: Outcome, bound: float) -> Difference:
        return replace(
            difference,
            equivalence_p=equivalence(difference.estimate, bound),
            resampled=bootstrap(_differences(ours, theirs, both.seeds, split, outcome), images, draws=draws),
            seeds_needed=seeds_needed(difference.estimate.deviation, bound),
        )

    return replace(
        both,
        log_probability=tested(both.log_probability, LOG_PROBABILITY, bounds.nats),
        accuracy=tested(both.accuracy, ACCURACY, bounds.accuracy),
    )


def _correlation(
    ours: Mapping[int, RunResult], theirs: Mapping[int, RunResult], seeds: Sequence[int], split: str
) -> float:
    """Pearson's correlation over seeds of the mean log-probability; NaN if there are fewer than three."""
    if len(seeds) < 3:
        return math.nan
    means = [[LOG_PROBABILITY.of(one[seed].answers[split]).mean() for seed in seeds] for one in (ours, theirs)]
    return float(np.corrcoef(means)[0, 1]) if np.ptp(means, axis=1).all() else math.nan


def _differences(
    ours: Mapping[int, RunResult], theirs: Mapping[int, RunResult], seeds: Sequence[int], split: str, outcome: Outcome
) -> Floats:
    """The difference of an outcome per seed and question, `(seeds, questions)`."""
    return np.stack([outcome.of(ours[seed].answers[split]) - outcome.of(theirs[seed].answers[split]) for seed in seeds])
