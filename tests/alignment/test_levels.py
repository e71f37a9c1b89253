import json
from pathlib import Path

import numpy as np
import pytest

from aligngpt.alignment.levels import AlignmentLevels, LevelsError, fit_levels, level_counts, roc_auc, thin_levels


def counts_of(scores: np.ndarray, levels: AlignmentLevels) -> list[int]:
    return level_counts(levels.assign(scores), levels.num_levels).tolist()


@pytest.mark.parametrize("num_levels", [2, 3, 8, 17])
@pytest.mark.parametrize("count", [17, 100, 1001])
def test_quantile_levels_have_equal_counts(num_levels: int, count: int) -> None:
    scores = np.random.default_rng(num_levels).normal(0.25, 0.05, count)
    counts = counts_of(scores, fit_levels(scores, num_levels))
    assert len(counts) == num_levels
    assert sum(counts) == count
    assert max(counts) - min(counts) <= 1


def test_counts_differ_by_no_more_than_the_ties() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 40, 2000) / 40
    longest_tie = int(np.unique(scores, return_counts=True)[1].max())
    counts = counts_of(scores, fit_levels(scores, 8))
    assert max(counts) - min(counts) <= 2 * longest_tie


def test_equal_scores_share_a_level() -> None:
    scores = np.repeat([0.1, 0.2, 0.3, 0.4], [500, 3, 400, 1])
    levels = fit_levels(scores, 3)
    assigned = levels.assign(scores)
    for score in np.unique(scores):
        assert len(set(assigned[scores == score])) == 1
    assert all(counts_of(scores, levels))


def test_level_n_is_the_best_aligned() -> None:
    scores = np.random.default_rng(1).random(200)
    assigned = fit_levels(scores, 8).assign(scores)
    assert assigned.min() == 1
    assert assigned.max() == 8
    assert (np.diff(assigned[np.argsort(scores)]) >= 0).all()


def test_width_levels_span_the_same_range() -> None:
    scores = np.concatenate([np.linspace(0, 0.1, 50), [1.0]])
    levels = fit_levels(scores, 4, "width")
    assert levels.borders == pytest.approx((0.25, 0.5, 0.75))
    assert counts_of(scores, levels) == [50, 0, 0, 1]


def test_a_score_on_a_border_belongs_to_the_level_above() -> None:
    levels = fit_levels([0.0, 1.0], 2, "width")
    assert levels.assign([0.5, np.nextafter(0.5, 0)]).tolist() == [2, 1]


def test_new_scores_beyond_the_fitted_range_get_the_outer_levels() -> None:
    levels = fit_levels(np.linspace(0, 1, 100), 8)
    assert levels.assign([[-5.0], [5.0]]).tolist() == [[1], [8]]


def test_neighbouring_floating_point_numbers_can_be_told_apart() -> None:
    low = 0.3
    high = float(np.nextafter(low, 1))
    assert fit_levels([low, high], 2).assign([low, high]).tolist() == [1, 2]


def test_saved_levels_are_loaded_to_the_same_numbers(tmp_path: Path) -> None:
    levels = fit_levels(np.random.default_rng(2).normal(size=500), 8)
    levels.save(tmp_path / "deep" / "levels.json")
    assert AlignmentLevels.load(tmp_path / "deep" / "levels.json") == levels


def test_statistics_are_those_of_the_scores() -> None:
    scores = np.random.default_rng(3).normal(size=300)
    found = fit_levels(scores, 4).statistics
    assert (found.count, found.minimum, found.maximum) == (300, scores.min(), scores.max())
    assert (found.mean, found.standard_deviation) == pytest.approx((scores.mean(), scores.std()))


@pytest.mark.parametrize(
    ("scores", "num_levels", "method", "says"),
    [
        ([], 2, "quantile", "no scores"),
        ([0.1, 0.2], 1, "quantile", "at least 2 levels"),
        ([0.1, np.nan, 0.3], 2, "quantile", "1 of 3 scores are NaN"),
        ([0.1, np.inf], 2, "width", "infinite"),
        ([0.1, 0.1, 0.2], 3, "quantile", "only 2 distinguishable values"),
        ([0.1, 0.1], 2, "width", "only 1 distinguishable values"),
        ([0.1, 0.2], 2, "equal", "one of quantile, width"),
    ],
)
def test_scores_that_cannot_be_cut_are_refused(scores: list, num_levels: int, method: str, says: str) -> None:
    with pytest.raises(LevelsError, match=says):
        fit_levels(scores, num_levels, method)  # type: ignore[arg-type]


def test_a_score_that_is_no_number_has_no_level() -> None:
    with pytest.raises(LevelsError, match="NaN"):
        fit_levels([0.0, 1.0], 2).assign([np.nan])


@pytest.mark.parametrize(
    "change",
    [
        {"borders": [0.2, 0.1]},
        {"borders": []},
        {"borders": ["0.1"]},
        {"borders": [float("nan")]},
        {"method": "other"},
        {"statistics": {}},
        {"statistics": {"count": 0, "mean": 0, "standard_deviation": 0, "minimum": 0, "maximum": 0}},
    ],
)
def test_a_damaged_file_says_so_and_what_to_do(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "levels.json"
    fit_levels([0.1, 0.2, 0.3], 3).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LevelsError, match=r"levels\.json is not a levels file .*aligngpt levels"):
        AlignmentLevels.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LevelsError, match=r"nowhere\.json cannot be read"):
        AlignmentLevels.load(tmp_path / "nowhere.json")


def test_levels_outside_the_range_are_not_counted() -> None:
    assert level_counts([1, 1, 3], 3).tolist() == [2, 0, 1]
    with pytest.raises(LevelsError, match="expected levels 1 to 3"):
        level_counts([0, 1], 3)


def test_levels_with_hardly_any_pairs_are_named() -> None:
    assert thin_levels([100, 100, 100, 100]) == []
    assert thin_levels([24, 176, 180, 20]) == [1, 4]
    assert thin_levels([25, 175, 175, 25]) == []


def test_roc_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(4)
    scores = rng.integers(0, 20, 60) / 20
    right = rng.random(60) < 0.5
    pairs = [(a > b) + (a == b) / 2 for a in scores[right] for b in scores[~right]]
    assert roc_auc(scores, right) == pytest.approx(sum(pairs) / len(pairs))
    assert roc_auc([1, 2, 3], [False, True, True]) == 1.0


@pytest.mark.parametrize(("scores", "right"), [([1, 2], [True, True]), ([1], [True, False]), ([np.nan, 1], [1, 0])])
def test_roc_auc_needs_both_kinds(scores: list, right: list) -> None:
    with pytest.raises(LevelsError):
        roc_auc(scores, right)
