"""How well scores tell right captions from wrong ones, with intervals that count pictures."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from aligngpt.alignment.levels import roc_auc
from aligngpt.reports.statistics import Interval, share_interval, wilson_interval


class Separation(NamedTuple):
    """The two measures of separation.

    Attributes:
        paired: share of pictures whose right caption scores higher than the wrong caption of the same picture; ties
            count half. The headline: both captions are about one picture, so it compares captions only. None if no
            picture has both.
        pictures: number of pictures with both.
        auc: probability that a right caption of any picture scores higher than a wrong one of any picture.
    """

    paired: Interval | None
    pictures: int
    auc: Interval

    def facts(self) -> dict[str, object]:
        """The entry in `separation.json`."""
        facts: dict[str, object] = {
            "roc_auc": self.auc.value,
            "low": self.auc.low,
            "high": self.auc.high,
            "pictures": self.pictures,
        }
        if self.paired is not None:
            facts["paired"] = {"share": self.paired.value, "low": self.paired.low, "high": self.paired.high}
        return facts


def separation(scores: Sequence[float], is_right: Sequence[bool], pictures: Sequence[Hashable]) -> Separation:
    """Compare the scores of right and wrong captions.

    Args:
        scores: one score per pair, `(pairs,)`.
        is_right: whether each caption is right, `(pairs,)`.
        pictures: the picture of each pair, `(pairs,)`.

    Raises:
        LevelsError: a score is NaN, or all captions are right or all are wrong.
    """
    values, right = np.asarray(scores, dtype=np.float64), np.asarray(is_right, dtype=bool)
    auc = auc_interval(values, right, pictures)
    of_picture: dict[Hashable, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for score, good, picture in zip(values.tolist(), right.tolist(), pictures, strict=True):
        of_picture[picture][good].append(score)
    won = [
        float(np.mean([(one > other) + 0.5 * (one == other) for one in rights for other in wrongs]))
        for wrongs, rights in of_picture.values()
        if wrongs and rights
    ]
    return Separation(share_interval(won, range(len(won))) if won else None, len(won), auc)


def auc_interval(scores: np.ndarray, is_right: np.ndarray, pictures: Sequence[Hashable]) -> Interval:
    """The area under the ROC curve and its 95 % interval, which counts pictures.

    The variance is DeLong's for pairs in groups (Obuchowski, "Nonparametric analysis of clustered ROC curve data",
    Biometrics 53, 1997). The interval is Wilson's with the number of trials that has this variance, so that it stays
    in 0…1; if the variance is zero, the trials are the pictures.
    """
    auc = roc_auc(scores, is_right)
    rights, wrongs = np.sort(scores[is_right]), np.sort(scores[~is_right])
    # The share of captions of the other kind that each caption compares well with; ties count half.
    placed = np.where(is_right, _mean_rank(wrongs, scores), 1 - _mean_rank(rights, scores)) - auc
    number = {picture: place for place, picture in enumerate(dict.fromkeys(pictures))}
    group = np.array([number[picture] for picture in pictures])
    of_right = np.bincount(group, np.where(is_right, placed, 0.0), len(number)) / len(rights)
    of_wrong = np.bincount(group, np.where(is_right, 0.0, placed), len(number)) / len(wrongs)
    variance = 0.0
    for part, counted in ((of_right, group[is_right]), (of_wrong, group[~is_right])):
        variance += _unbiased(len(np.unique(counted))) * float(part @ part)
    variance += 2 * _unbiased(len(number)) * float(of_right @ of_wrong)
    trials = min(auc * (1 - auc) / variance, float(len(scores))) if variance > 1e-12 else float(len(number))
    return Interval(auc, *wilson_interval(auc * trials, trials))


def _mean_rank(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The share of `ordered` below each value; equal ones count half."""
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(ordered))


def _unbiased(groups: int) -> float:
    return groups / (groups - 1) if groups > 1 else 1.0
