"""Statistics of scores in one pass: those of all scores at once, in bounded memory."""

import tracemalloc

import numpy as np
import pytest

from aligngpt.levels.repeats import HashCounter
from aligngpt.levels.streaming import BinnedScores, ScoreHistogram, Smallest


def test_a_histogram_loses_no_score_and_widens_its_bins() -> None:
    generator = np.random.default_rng(0)
    histogram, taken = ScoreHistogram(), [np.array([0.25]), np.array([0.25, 0.2500001])]
    taken += [generator.normal(0.2, 0.1, 1000), np.array([-700.0, 1e6]), np.array([])]
    for scores in taken:
        histogram.add(scores)
    whole = np.concatenate(taken)
    counts, edges = histogram.drawn(20)
    assert sum(counts) == histogram.count == len(whole)
    assert len(counts) <= 20 and edges[0] <= whole.min() and edges[-1] >= whole.max()
    assert histogram.mean == pytest.approx(whole.mean())
    assert histogram.standard_deviation == pytest.approx(whole.std())


def test_quantiles_are_right_to_the_width_of_a_bin() -> None:
    histogram, scores = ScoreHistogram(), np.random.default_rng(1).normal(0.2, 0.1, 20_000)
    for part in np.split(scores, 20):
        histogram.add(part)
    for share in (0.01, 0.25, 0.5, 0.99):
        assert histogram.quantile(share) == pytest.approx(np.quantile(scores, share), abs=4e-4)


def test_smallest_keeps_what_a_sort_would_put_first() -> None:
    keys = np.random.default_rng(2).integers(0, 50, 500).astype(np.float64)
    smallest: Smallest[int] = Smallest(40)
    for start in range(0, 500, 60):
        smallest.add(keys[start : start + 60], lambda place, start=start: start + place)  # type: ignore[misc]
    assert smallest.rows() == np.argsort(keys, kind="stable")[:40].tolist()


def test_memory_does_not_grow_with_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aligngpt.levels.repeats.HASHES_AT_ONCE", 5_000)

    def peak(batches: int) -> int:
        histogram, counter, smallest = ScoreHistogram(), HashCounter(2_000), Smallest[int](100)
        binned, generator = BinnedScores((1, 9, 17)), np.random.default_rng(0)
        tracemalloc.start()
        for _ in range(batches):
            scores = generator.normal(size=1_000)
            histogram.add(scores)
            smallest.add(scores, int)
            binned.add(generator.integers(1, 99, 1_000), scores)
            counter.add(generator.integers(0, 2**64, 1_000, dtype=np.uint64), np.arange(1_000))
        counter.repeats()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    # A number kept for each pair would be twice as much.
    assert peak(240) < 1.3 * peak(80)


def test_bins_have_the_means_of_their_scores() -> None:
    values, scores = np.array([1, 4, 5, 300]), np.array([0.1, 0.3, 0.5, 0.7])
    binned = BinnedScores((1, 5, 6, 129))
    assert binned.bins() == [] and binned.correlation() is None
    binned.add(values[:2], scores[:2])
    binned.add(values[2:], scores[2:])
    assert [(found.name, found.pairs) for found in binned.bins()] == [("1–4", 2), ("5", 1), ("129+", 1)]
    assert binned.bins()[0].mean == pytest.approx(0.2) and binned.bins()[0].deviation == pytest.approx(0.1)
    assert binned.correlation() == pytest.approx(np.corrcoef(np.log2(values), scores)[0, 1])


def test_bins_keep_small_differences_of_large_scores() -> None:
    generator = np.random.default_rng(0)
    values, scores = generator.integers(1, 9, 1000), 1e6 + generator.normal(0, 0.01, 1000)
    binned = BinnedScores((1,))
    for start in range(0, 1000, 100):
        binned.add(values[start : start + 100], scores[start : start + 100])
    (found,) = binned.bins()
    assert found.mean == pytest.approx(scores.mean(), rel=1e-12)
    assert found.deviation == pytest.approx(scores.std(), rel=1e-4)
    assert binned.correlation() == pytest.approx(np.corrcoef(np.log2(values), scores)[0, 1], rel=1e-3)
