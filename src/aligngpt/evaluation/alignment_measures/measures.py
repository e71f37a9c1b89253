"""Measures of alignment from likelihoods: choosing captions, levels as detector, dose and response, calibration."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from aligngpt.evaluation.alignment_measures.likelihoods import MeasureError, Numbers
from aligngpt.evaluation.scoring_rules.pope import PopeCounts, count_answers
from aligngpt.reports.separation import Separation, separation
from aligngpt.reports.statistics import Interval, share_interval


class Choices(NamedTuple):
    """Shares of sets, 0…1, with 95 % intervals. Ties count as wrong.

    Attributes:
        text: each picture's right caption is its most likely one (SugarCrepe's and What'sUp's accuracy).
        image: each caption is most likely for its own picture; None if the sets have one picture.
        group: both; None likewise.
    """

    text: Interval
    image: Interval | None
    group: Interval | None


class Calibration(NamedTuple):
    """How far probabilities of yes are from what is true.

    Attributes:
        ece: expected calibration error, 0…1, over bins of equal width.
        brier: mean squared difference of probability and truth, 0…1.
    """

    ece: float
    brier: float


class LevelResponse(NamedTuple):
    """Captions at one level: mean log-probability (natural logarithm) of right and of wrong ones."""

    right: float
    wrong: float


def choices(tables: Sequence[Numbers], groups: Sequence[Hashable]) -> Choices:
    """Winoground's three scores (Thrush et al., 2022), of which the first is the accuracy of choosing a caption.

    Args:
        tables: per set, log-probabilities `(pictures, captions)`; the right caption of picture i is caption i.
        groups: the picture of each set, for the intervals.

    Raises:
        MeasureError: there are no sets, some have one picture and some several, or a log-probability is not a number.
    """
    _need(tables, "sets of captions")
    if any(np.isnan(one).any() for one in tables):
        raise MeasureError(
            "a log-probability is not a number, so captions cannot be compared; check the model's weights, and measure "
            "again in another folder"
        )
    several = {len(one) > 1 for one in tables}
    if len(several) > 1:
        raise MeasureError("some sets have one picture and others several; measure them apart")
    text = [float(_first(one)) for one in tables]
    if several == {False}:
        return Choices(share_interval(text, groups), None, None)
    image = [float(_first(one.T)) for one in tables]
    both = [a * b for a, b in zip(text, image, strict=True)]
    return Choices(share_interval(text, groups), share_interval(image, groups), share_interval(both, groups))


def _first(table: Numbers) -> bool:
    """Whether entry i is the largest of row i, and no other equals it."""
    return all(table[row, row] > max(np.delete(table[row], row), default=-np.inf) for row in range(min(table.shape)))


def level_detector(
    highest: Sequence[float], lowest: Sequence[float], is_right: Sequence[bool], pictures: Sequence[Hashable]
) -> Separation:
    """How well log p(c | I, level N) − log p(c | I, level 1) tells right captions from wrong ones.

    Args:
        highest, lowest: log-probabilities at level N and at level 1, `(captions,)`.
        is_right: whether each caption is right.
        pictures: the picture of each.

    Raises:
        MeasureError: a log-probability is not finite.
        LevelsError: all captions are right or all are wrong.
    """
    scores = np.asarray(highest, dtype=np.float64) - np.asarray(lowest, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise MeasureError("a log-probability is not finite, so levels cannot be compared")
    return separation(scores.tolist(), is_right, pictures)


def dose_response(tables: Sequence[Numbers]) -> list[LevelResponse]:
    """Mean log-probability of right and of wrong captions at each level.

    Args:
        tables: per set, log-probabilities `(levels, pictures, captions)`.

    Raises:
        MeasureError: there are no sets, or no wrong captions.
    """
    _need(tables, "sets of captions")
    right, wrong = [], []
    for table in tables:
        own = np.eye(*table.shape[1:]) == 1
        right.append(table[:, own])
        wrong.append(table[:, ~own])
    rights, wrongs = np.concatenate(right, axis=1), np.concatenate(wrong, axis=1)
    if not wrongs.shape[1]:
        raise MeasureError("the sets have no wrong captions")
    return [LevelResponse(float(a), float(b)) for a, b in zip(rights.mean(axis=1), wrongs.mean(axis=1), strict=True)]


def yes_by_level(probabilities: Numbers, truth: Sequence[bool]) -> list[PopeCounts]:
    """Yes and no at each level, with their yes rate and F1; yes is said from a probability of 0.5 on.

    Args:
        probabilities: of yes, `(levels, questions)`.
        truth: whether yes is right, `(questions,)`.

    Raises:
        MeasureError: there are no questions.
    """
    _need(truth, "questions")
    right = ["yes" if one else "no" for one in truth]
    return [count_answers(["yes" if one >= 0.5 else "no" for one in level], right) for level in probabilities]  # type: ignore[arg-type]


def calibration(probabilities: Sequence[float], truth: Sequence[bool], bins: int = 10) -> Calibration:
    """Expected calibration error (Naeini et al., 2015) and Brier score of probabilities of yes.

    Args:
        probabilities: 0…1, `(questions,)`.
        truth: whether yes is right, `(questions,)`.
        bins: number of bins of equal width.

    Raises:
        MeasureError: there are no questions, numbers of both differ, or a probability is not in 0…1.
    """
    _need(truth, "questions")
    said, true = np.asarray(probabilities, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if said.shape != true.shape:
        raise MeasureError(f"there are {len(said)} probabilities and {len(true)} answers")
    if not ((said >= 0) & (said <= 1)).all():
        raise MeasureError("a probability is not between 0 and 1")
    place = np.minimum((said * bins).astype(int), bins - 1)
    gaps = np.abs(np.bincount(place, said - true, minlength=bins))
    return Calibration(float(gaps.sum() / len(said)), float(np.mean((said - true) ** 2)))


def _need(values: Sequence[object], what: str) -> None:
    if not len(values):
        raise MeasureError(f"there are no {what} to measure")
