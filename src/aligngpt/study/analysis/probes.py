"""What the levels do to captions: how likely each level makes them, and whether that tells right ones from wrong ones.

Measured after pre-training, before instruction tuning, on captions of pictures that were not trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aligngpt.alignment.levels import roc_auc
from aligngpt.reports.separation import auc_interval
from aligngpt.reports.statistics import Interval
from aligngpt.study.analysis.loading import Condition, Floats, PretrainingResult, Results
from aligngpt.study.analysis.student import Estimate, estimate
from aligngpt.study.arms import ARMS

LEVEL_DIFFERENCE = "log p(c | I, level N) − log p(c | I, level 1)"
POSTERIOR_LEVEL = "mean level, weighted by p(level | c, I)"
PICTURE_GAIN = "log p(c | I) − log p(c | blank picture)"
LIKELIHOOD = "log p(c | I)"


@dataclass(frozen=True)
class DoseResponse:
    """The log-probability of captions at each forced level.

    Attributes:
        condition: the pre-training.
        right, wrong: mean over captions at level 1…N of the right and of the wrong captions, with its interval.
        right_slope, wrong_slope: least-squares change per level, in nats.
        rank_correlation: Spearman's of the level and the right captions' mean; 1 if it rises at every level.
        gain: what level N makes of right captions, minus a pre-training on all pairs without levels, in nats; None if
            they have no seed in common.
    """

    condition: Condition
    right: tuple[Estimate, ...]
    wrong: tuple[Estimate, ...]
    right_slope: Estimate
    wrong_slope: Estimate
    rank_correlation: Estimate
    gain: Estimate | None = None


class Detector(NamedTuple):
    """How well a score tells right captions from wrong ones.

    Attributes:
        condition: the pre-training whose score it is.
        score: what is computed.
        auc: area under the ROC curve, mean over seeds.
        by_kind: the same by what is wrong with the caption.
        by_seed: the area of each seed.
    """

    condition: Condition
    score: str
    auc: Estimate
    by_kind: dict[str, Estimate]
    by_seed: dict[int, float]


class EncoderDetector(NamedTuple):
    """The same for the scores of the dual encoder, which have no seed; the interval counts pictures."""

    auc: Interval
    by_kind: dict[str, float]


def dose_responses(results: Results) -> list[DoseResponse]:
    """Of every pre-training that was measured at several levels."""
    found = []
    for condition, of_seed in sorted(results.pretrainings.items(), key=lambda item: item[0][:3]):
        measured = [one for one in of_seed.values() if one.right is not None and len(one.right) > 1]
        if not measured:
            continue
        right = np.stack([one.right.mean(axis=1) for one in measured if one.right is not None])
        wrong = np.stack([one.wrong.mean(axis=1) for one in measured if one.wrong is not None])
        found.append(
            DoseResponse(
                condition,
                tuple(map(estimate, right.T)),
                tuple(map(estimate, wrong.T)),
                estimate(slopes(right)),
                estimate(slopes(wrong)),
                estimate([rank_correlation(row) for row in right]),
                _gain(results, condition),
            )
        )
    return found


def slopes(means: Floats) -> Floats:
    """The least-squares slope over levels 1…N of each row, `(rows, levels)` → `(rows,)`."""
    centred = np.arange(means.shape[1]) - (means.shape[1] - 1) / 2
    found: Floats = means @ centred / (centred @ centred)
    return found


def rank_correlation(values: ArrayLike) -> float:
    """Spearman's rank correlation of values with their places 1…N; 0 if all are equal. Ties have their mean rank."""
    array = np.asarray(values, dtype=np.float64)
    _, place, ties = np.unique(array, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[place]
    if np.ptp(ranks) == 0:
        return 0.0
    return float(np.corrcoef(ranks, np.arange(len(array)))[0, 1])


def detectors(results: Results) -> list[Detector]:
    """Every score of every pre-training that was measured."""
    if results.questions.probe is None:
        return []
    kinds = np.array(results.questions.probe.kind)
    found = []
    for condition, of_seed in sorted(results.pretrainings.items(), key=lambda item: item[0][:3]):
        scores: dict[str, dict[int, tuple[Floats, Floats]]] = {}
        for seed, one in sorted(of_seed.items()):
            for name, pair in _scores(one).items():
                scores.setdefault(name, {})[seed] = pair
        for name, by_seed in scores.items():
            areas = {seed: area(right, wrong) for seed, (right, wrong) in by_seed.items()}
            by_kind = {
                kind: estimate([area(right[mask], wrong[mask]) for right, wrong in by_seed.values()])
                for kind, mask in _masks(kinds).items()
            }
            found.append(Detector(condition, name, estimate(list(areas.values())), by_kind, areas))
    return found


def encoder_detector(results: Results) -> EncoderDetector | None:
    """The dual encoder's own scores; None if they are not known."""
    probe = results.questions.probe
    if probe is None or not probe.right_score:
        return None
    right, wrong = np.array(probe.right_score), np.array(probe.wrong_score)
    pictures = list(range(len(right)))
    is_right = np.repeat([True, False], len(right))
    auc = auc_interval(np.concatenate([right, wrong]), is_right, pictures * 2)
    by_kind = {kind: area(right[mask], wrong[mask]) for kind, mask in _masks(np.array(probe.kind)).items()}
    return EncoderDetector(auc, by_kind)


def area(right: Floats, wrong: Floats) -> float:
    """The probability that a right caption scores higher than a wrong one; ties count half."""
    return roc_auc(np.concatenate([right, wrong]), np.repeat([True, False], [len(right), len(wrong)]))


def posterior_level(log_probabilities: Floats) -> Floats:
    """The mean level of each caption, Σ_k k · p(k | c, I), with every level equally likely before: `(captions,)`.

    Bayes: p(k | c, I) ∝ p(c | I, k).

    Args:
        log_probabilities: log p(c | I, k) for level k = 1…N, `(levels, captions)`.
    """
    weights = np.exp(log_probabilities - log_probabilities.max(axis=0))
    found: Floats = np.arange(1, len(weights) + 1) @ weights / weights.sum(axis=0)
    return found


def _gain(results: Results, condition: Condition) -> Estimate | None:
    ours = results.pretrainings[condition]
    theirs = results.pretrainings.get(Condition(ARMS["none"].pretraining, condition.noise, 2), {})
    found = []
    for seed in sorted(ours.keys() & theirs.keys()):
        one, other = ours[seed].right, theirs[seed].right
        if one is not None and other is not None:
            found.append(float(one[-1].mean() - other[0].mean()))
    return estimate(found) if found else None


def _scores(one: PretrainingResult) -> dict[str, tuple[Floats, Floats]]:
    """The scores of right and wrong captions, by what is computed."""
    if one.right is None or one.wrong is None:
        return {}
    if len(one.right) > 1:
        return {
            LEVEL_DIFFERENCE: (one.right[-1] - one.right[0], one.wrong[-1] - one.wrong[0]),
            POSTERIOR_LEVEL: (posterior_level(one.right), posterior_level(one.wrong)),
        }
    scores = {LIKELIHOOD: (one.right[0], one.wrong[0])}
    if one.right_blank is not None and one.wrong_blank is not None:
        gains = one.right[0] - one.right_blank, one.wrong[0] - one.wrong_blank
        return {PICTURE_GAIN: gains, **scores}
    return scores


def _masks(kinds: NDArray[np.str_]) -> dict[str, NDArray[np.bool_]]:
    names: Sequence[str] = sorted(set(kinds.tolist()))
    return {kind: kinds == kind for kind in names if kind}
