"""The findings that would speak against the method, named before the study was run, and whether they were made."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from aligngpt.study.analysis.contrasts import Bounds, contrast
from aligngpt.study.analysis.loading import Results
from aligngpt.study.analysis.probes import LEVEL_DIFFERENCE, PICTURE_GAIN, Detector, DoseResponse
from aligngpt.study.analysis.student import Estimate, estimate
from aligngpt.study.analysis.words import mean_and_interval, seeds_in_words

Outcome = Literal["found", "not found", "inconclusive"]

AREA = 0.02
"""The smallest difference of two areas under ROC curves that matters."""
SLOPE = 0.02
"""The smallest change of the log-probability of captions that matters, in nats per level."""


class Falsifier(NamedTuple):
    """One of these findings.

    Attributes:
        name: one letter.
        rule: what it would be.
        outcome: whether it was found.
        why: the numbers, in a sentence; or what is missing.
    """

    name: str
    rule: str
    outcome: Outcome
    why: str


def falsifiers(
    results: Results, dose: Sequence[DoseResponse], detectors: Sequence[Detector], bounds: Bounds
) -> list[Falsifier]:
    """Evaluate the three at the highest share of bad captions."""
    noise = results.noises[-1]
    return [
        _placebo(results, noise, bounds),
        _detector(results, noise, detectors),
        _flat(results, noise, dose),
    ]


def _placebo(results: Results, noise: float, bounds: Bounds) -> Falsifier:
    place = results.place(noise)
    rule = (
        f"With the right levels (`adaptive`) a model is not better than with levels dealt out at random (`placebo`): "
        f"the upper end of the 95 % interval is below {100 * bounds.accuracy:g} points of accuracy and below "
        f"{bounds.nats:g} nats."
    )
    both = contrast(results, results.condition("adaptive", noise), results.condition("placebo", noise))
    if both is None:
        return Falsifier("a", rule, "inconclusive", f"No seed has both arms {place}.")
    points, nats = both.accuracy.estimate, both.log_probability.estimate
    why = (
        f"{place.capitalize()} the difference is {_in_words(points, 100, 2)} points and "
        f"{_in_words(nats, 1, 3)} nats ({seeds_in_words(len(both.seeds))})."
    )
    if not (points.is_known and nats.is_known):
        return Falsifier("a", rule, "inconclusive", why)
    if points.high < bounds.accuracy and nats.high < bounds.nats:
        return Falsifier("a", rule, "found", why)
    return Falsifier("a", rule, "not found" if points.low > 0 or nats.low > 0 else "inconclusive", why)


def _detector(results: Results, noise: float, detectors: Sequence[Detector]) -> Falsifier:
    place = results.place(noise)
    rule = (
        f"The levels do not tell right captions from wrong ones better than a model without levels does: the area "
        f"under the ROC curve of {LEVEL_DIFFERENCE} is not above that of {PICTURE_GAIN} of `none`: the upper end of "
        f"the 95 % interval of the difference is below {AREA:g}."
    )
    ours = _of(detectors, results.pretraining("adaptive", noise), LEVEL_DIFFERENCE)
    theirs = _of(detectors, results.pretraining("none", noise), PICTURE_GAIN)
    seeds = sorted(ours.by_seed.keys() & theirs.by_seed.keys()) if ours and theirs else []
    if not ours or not theirs or not seeds:
        missing = f"No seed has both pre-trainings, measured, {place}."
        return Falsifier("b", rule, "inconclusive", missing)
    areas = np.array([[one.by_seed[seed] for seed in seeds] for one in (ours, theirs)])
    difference = estimate(areas[0] - areas[1])
    why = (
        f"{place.capitalize()} the areas are {areas[0].mean():.3f} and {areas[1].mean():.3f}; "
        f"the difference is {_in_words(difference, 1, 3)} ({seeds_in_words(len(seeds))})."
    )
    if not difference.is_known:
        return Falsifier("b", rule, "inconclusive", why)
    outcome: Outcome = "found" if difference.high < AREA else "not found" if difference.low > 0 else "inconclusive"
    return Falsifier("b", rule, outcome, why)


def _flat(results: Results, noise: float, dose: Sequence[DoseResponse]) -> Falsifier:
    place = results.place(noise)
    rule = (
        "The likelihood of right captions does not change with the forced level: the 95 % interval of the slope of "
        f"their log-probability over the level is within ±{SLOPE:g} nats per level."
    )
    condition = results.pretraining("adaptive", noise)
    one = next((one for one in dose if one.condition == condition), None)
    if one is None:
        missing = f"No pre-training with levels was measured {place}."
        return Falsifier("c", rule, "inconclusive", missing)
    slope = one.right_slope
    why = (
        f"{place.capitalize()} the slope is {_in_words(slope, 1, 3)} nats per level ({seeds_in_words(slope.seeds)}); "
        f"Spearman's rank correlation of level and log-probability is {one.rank_correlation.value:.2f}."
    )
    if not slope.is_known:
        return Falsifier("c", rule, "inconclusive", why)
    if slope.high < 0:
        why += " A higher level makes right captions less likely."
    flat, changes = slope.low > -SLOPE and slope.high < SLOPE, slope.low > 0 or slope.high < 0
    return Falsifier("c", rule, "found" if flat else "not found" if changes else "inconclusive", why)


def _of(detectors: Sequence[Detector], condition: object, score: str) -> Detector | None:
    return next((one for one in detectors if one.condition == condition and one.score == score), None)


def _in_words(found: Estimate, factor: float, decimals: int) -> str:
    return mean_and_interval(found, factor=factor, decimals=decimals, signed=True)
