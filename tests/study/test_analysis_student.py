"""The statistics of differences over seeds, against hand-computed and simulated values."""

import math
import sys

import numpy as np
import pytest

from aligngpt.study.analysis.student import bootstrap, equivalence, estimate, holm, seeds_needed
from aligngpt.study.pairs import StudyError


def test_an_estimate_of_three_seeds_is_the_one_computed_by_hand() -> None:
    found = estimate([1.0, 2.0, 3.0])
    # SD 1, standard error 1/√3, t quantile of 2 degrees of freedom 4.3027; t = 3.4641 has p = 0.0742.
    assert found.value == 2 and found.deviation == 1 and found.seeds == 3
    assert found.high - found.value == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert found.value - found.low == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert found.p == pytest.approx(0.0742, abs=5e-5)


@pytest.mark.parametrize("values", [[0.3], [0.3, 0.3, 0.3], [0.0, 0.0]])
def test_nothing_is_known_without_a_spread(values: list[float]) -> None:
    found = estimate(values)
    assert not found.is_known and found.p == 1
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert equivalence(found, 1.0) == 1


def test_an_estimate_of_no_seed_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        estimate([])


@pytest.mark.parametrize("seeds", [3, 10])
def test_the_interval_covers_the_truth_in_95_of_100_cases(seeds: int) -> None:
    samples = np.random.default_rng(1).normal(0.7, 2.0, (1000, seeds))
    found = [estimate(row) for row in samples]
    covered = np.mean([one.low <= 0.7 <= one.high for one in found])
    # Three binomial standard errors.
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 1000))
    # An interval excludes 0 exactly where p is below 0.05.
    assert all((one.low > 0 or one.high < 0) == (one.p < 0.05) for one in found)


def test_two_arms_are_equivalent_where_the_90_percent_interval_is_within_the_bounds() -> None:
    found = estimate([-0.1, 0.0, 0.1, 0.2])
    error, quantile = found.deviation / 2, 2.353363
    edge = found.value + quantile * error
    assert equivalence(found, edge) == pytest.approx(0.05, abs=1e-6)
    assert equivalence(found, 1.01 * edge) < 0.05 < equivalence(found, 0.99 * edge)


def test_a_difference_beyond_the_bound_is_not_equivalent_on_either_side() -> None:
    for sign in (1, -1):
        assert equivalence(estimate(sign * np.array([0.9, 1.0, 1.1])), 0.5) > 0.95


def test_equivalence_needs_a_bound() -> None:
    with pytest.raises(ValueError, match="above 0, found 0"):
        equivalence(estimate([1.0, 2.0]), 0)


def test_holm_gives_the_values_computed_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, then the largest so far.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("deviation", "of_half_a_point", "of_a_point"),
    [(0.2, 4, 3), (0.3, 6, 3), (0.5, 10, 5), (0.7, 18, 7), (1.0, 34, 10)],
)
def test_seeds_needed_are_those_of_published_tables(deviation: float, of_half_a_point: int, of_a_point: int) -> None:
    assert seeds_needed(deviation, 0.5) == of_half_a_point
    assert seeds_needed(deviation, 1.0) == of_a_point


def test_seeds_needed_of_extreme_spreads() -> None:
    assert seeds_needed(math.nan, 0.5) is None
    assert seeds_needed(1000.0, 0.5) is None
    assert seeds_needed(0.0, 0.5) == seeds_needed(1e-9, 0.5) == 2


def test_the_bootstrap_has_the_width_of_seeds_and_pictures() -> None:
    rng = np.random.default_rng(2)
    seeds, pictures = 20, 200
    of_seed, of_picture = rng.normal(0, 0.3, (seeds, 1)), rng.normal(0, 2.0, pictures)
    differences = of_seed + of_picture + rng.normal(0, 0.5, (seeds, pictures))
    low, high = bootstrap(differences, range(pictures))
    # What a picture contributes is shared by the seeds, so that its variance is not divided by their number.
    expected = 1.96 * math.sqrt(0.3**2 / seeds + 2.0**2 / pictures + 0.5**2 / (seeds * pictures))
    assert (high - low) / 2 == pytest.approx(expected, rel=0.25)
    assert low < differences.mean() < high


def test_the_bootstrap_counts_what_is_particular_to_a_seed_and_a_picture_nearly_three_times() -> None:
    rng = np.random.default_rng(4)
    seeds, pictures = 10, 100
    widths = []
    for draw in range(20):
        low, high = bootstrap(rng.normal(0, 1, (seeds, pictures)), range(pictures), seed=draw)
        widths.append(high - low)
    variances = (np.array(widths) / (2 * 1.96)) ** 2 * seeds * pictures
    # Of independent values: 1 − 1/seeds for drawing seeds, 1 − 1/pictures for pictures, their product for both.
    expected = 0.9 + 0.99 + 0.9 * 0.99
    assert np.mean(variances) == pytest.approx(expected, rel=0.12)


def test_the_bootstrap_draws_questions_of_a_picture_together() -> None:
    values = np.random.default_rng(3).normal(size=(8, 30))
    once = bootstrap(values, range(30))
    again = bootstrap(np.repeat(values, 4, axis=1), np.repeat(range(30), 4).tolist())
    assert again == pytest.approx(once)


def test_the_bootstrap_of_one_seed_or_one_picture_is_unknown() -> None:
    assert bootstrap(np.ones((1, 4)), [0, 1, 2, 3]) == (-math.inf, math.inf)
    assert bootstrap(np.ones((4, 2)), [0, 0]) == (-math.inf, math.inf)


def test_a_missing_scipy_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(StudyError, match=r"pip install 'aligngpt\[study\]'"):
        estimate([1.0, 2.0])
