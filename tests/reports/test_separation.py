"""Tests of the separation of right and wrong captions: known cases, and coverage of its intervals."""

import numpy as np
import pytest

from aligngpt.alignment.levels import LevelsError, roc_auc
from aligngpt.reports.separation import auc_interval, separation

RIGHT_AND_WRONG = [True, False] * 60


def test_captions_of_the_same_picture_are_compared_with_each_other() -> None:
    """Pictures differ more in their scores than a right caption from a wrong one."""
    pictures = np.repeat(np.arange(60), 2)
    scores = pictures + np.tile([0.5, 0.0], 60)
    found = separation(scores.tolist(), RIGHT_AND_WRONG, pictures.tolist())
    assert found.paired is not None and found.paired.value == 1.0 and 0.9 < found.paired.low < 1
    assert found.pictures == 60
    assert found.auc.value < 0.55 < found.paired.low


def test_a_tie_is_half_a_win() -> None:
    found = separation([1, 1, 2, 0], [True, False] * 2, ["a", "a", "b", "b"])
    assert found.paired is not None and found.paired.value == 0.75
    assert found.facts()["paired"] == {"share": 0.75, "low": found.paired.low, "high": found.paired.high}


def test_a_picture_with_one_caption_is_not_paired() -> None:
    found = separation([1, 0, 2], [True, False, True], ["a", "a", "b"])
    assert found.pictures == 1
    alone = separation([1, 0], [True, False], ["a", "b"])
    assert alone.paired is None and alone.pictures == 0 and "paired" not in alone.facts()


def test_complete_separation_is_as_sure_as_the_pictures_are_many() -> None:
    few, many = (
        separation([1.0, 0.0] * count, [True, False] * count, np.repeat(np.arange(count), 2).tolist()).auc
        for count in (5, 500)
    )
    assert few.value == many.value == few.high == 1.0
    assert few.low < 0.7 < 0.99 < many.low


def test_a_single_picture_is_no_more_than_one_picture() -> None:
    found = separation([3, 2, 1, 0], [True, True, False, False], ["a"] * 4)
    assert found.auc.low < 0.3


def test_separation_needs_both_kinds() -> None:
    with pytest.raises(LevelsError, match="both right and wrong"):
        separation([1, 2], [True, True], ["a", "b"])


def test_the_interval_of_the_auc_covers_the_truth_where_pairs_share_pictures() -> None:
    """Normal scores with a common part per picture of several captions; the truth is Φ(1 / √2)."""
    rng, truth, covered, runs = np.random.default_rng(0), 0.7602, 0, 200
    pictures = np.repeat(np.arange(60), 6)
    right = np.tile([True] * 5 + [False], 60)
    # Each picture's share of right captions differs, so that its common part matters.
    right[pictures % 2 == 0] = ~right[pictures % 2 == 0]
    for _ in range(runs):
        common = np.repeat(rng.normal(size=60), 6) * np.sqrt(0.7)
        scores = common + rng.normal(size=360) * np.sqrt(0.3) + right
        found = auc_interval(scores, right, pictures.tolist())
        assert found.value == pytest.approx(roc_auc(scores, right))
        covered += found.low <= truth <= found.high
    assert covered / runs > 0.9
