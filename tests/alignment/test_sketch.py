"""Levels of scores added in batches: exact for few scores, within the stated error for many."""

from pathlib import Path

import numpy as np
import pytest

from aligngpt.alignment import sketch
from aligngpt.alignment.levels import AlignmentLevels, LevelMethod, LevelsError, fit_levels, level_counts
from aligngpt.alignment.sketch import ScoreCollector


def collected(scores: np.ndarray, batch: int = 700) -> ScoreCollector:
    collector = ScoreCollector()
    for start in range(0, len(scores), batch):
        collector.add(scores[start : start + batch])
    return collector


@pytest.mark.parametrize("method", ["quantile", "width"])
def test_few_scores_give_the_exact_levels(method: LevelMethod) -> None:
    scores = np.random.default_rng(0).normal(0.3, 0.1, 5000)
    assert collected(scores).fit(8, method) == fit_levels(scores, 8, method)


def test_many_scores_are_cut_within_the_stated_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketch, "EXACT_SCORES", 1000)
    scores = np.random.default_rng(1).normal(0.3, 0.1, 200_000)
    levels = collected(scores).fit(8)
    assert 0 < levels.rank_error < 0.001
    below = (scores[:, None] < levels.borders).mean(axis=0)
    # The stated error holds for 99 of 100 sketches.
    np.testing.assert_allclose(below, np.arange(1, 8) / 8, atol=2 * levels.rank_error)
    assert level_counts(levels.assign(scores), 8).sum() == len(scores)


@pytest.mark.parametrize(
    "scores",
    [
        pytest.param(np.exp(-np.linspace(50, 150, 20_000)), id="likelihoods"),
        pytest.param(1.7e9 + np.arange(20_000) / 100, id="far from zero"),
        pytest.param(np.linspace(1e39, 2e39, 20_000), id="large"),
    ],
)
def test_scores_are_told_apart_as_precisely_as_they_are_given(
    scores: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sketch, "EXACT_SCORES", 1000)
    levels = collected(np.random.default_rng(5).permutation(scores)).fit(8)
    below = (scores[:, None] < levels.borders).mean(axis=0)
    np.testing.assert_allclose(below, np.arange(1, 8) / 8, atol=2 * levels.rank_error)


def test_the_statistics_of_many_scores_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(2).normal(0.3, 0.1, 20_000)
    exact = fit_levels(scores, 8).statistics
    monkeypatch.setattr(sketch, "EXACT_SCORES", 10)
    found = collected(scores).fit(8).statistics
    assert (found.count, found.minimum, found.maximum) == (exact.count, exact.minimum, exact.maximum)
    assert found.mean == pytest.approx(exact.mean, rel=1e-12)
    assert found.standard_deviation == pytest.approx(exact.standard_deviation, rel=1e-12)


def test_levels_of_equal_width_need_no_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(3).random(5000)
    exact = fit_levels(scores, 8, "width")
    monkeypatch.setattr(sketch, "EXACT_SCORES", 10)
    found = collected(scores).fit(8, "width")
    assert (found.borders, found.rank_error) == (exact.borders, 0)


def test_equal_scores_share_a_level_in_a_sketch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketch, "EXACT_SCORES", 10)
    scores = np.repeat([0.1, 0.2, 0.3, 0.4], [50_000, 300, 40_000, 100])
    assert level_counts(collected(scores).fit(4).assign(scores), 4).tolist() == [50_000, 300, 40_000, 100]
    with pytest.raises(LevelsError, match="only 4 distinguishable values"):
        collected(scores).fit(5)


def test_the_error_is_kept_with_the_borders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sketch, "EXACT_SCORES", 10)
    levels = collected(np.random.default_rng(4).random(50_000)).fit(4)
    levels.save(tmp_path / "levels.json")
    assert AlignmentLevels.load(tmp_path / "levels.json") == levels
    assert levels.rank_error > 0


def test_scores_that_are_no_numbers_or_none_at_all_are_an_error() -> None:
    collector = ScoreCollector()
    with pytest.raises(LevelsError, match="2 scores are NaN or infinite"):
        collector.add([0.1, np.nan, np.inf])
    collector.add([])
    with pytest.raises(LevelsError, match="there are no scores"):
        collector.fit()
