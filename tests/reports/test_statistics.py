"""Tests of intervals: published values, and coverage of answers that come in groups."""

import math

import numpy as np
import pytest

from aligngpt.reports.statistics import (
    difference_interval,
    effective_total,
    share_interval,
    student_quantile,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # The first three are from Newcombe (Statistics in Medicine 17, 1998, table I, method 3).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_wilson_interval_is_the_published_one(correct: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_always_holds_the_measured_share() -> None:
    for total in range(1, 60):
        for correct in range(total + 1):
            low, high = wilson_interval(correct, total)
            assert 0.0 <= low <= correct / total <= high <= 1.0


def test_no_trials_say_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert share_interval([], [])[1:] == (0.0, 1.0) and math.isnan(share_interval([], []).value)
    assert difference_interval([], [], [])[1:] == (-1.0, 1.0)


@pytest.mark.parametrize(("correct", "total"), [(-1, 3), (4, 3), (0, -1)])
def test_impossible_counts_are_refused(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"correct={correct}, total={total}"):
        wilson_interval(correct, total)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (5, 2.5706), (10, 2.2281), (30, 2.0423), (2000, 1.9612)]
)
def test_students_quantiles_are_the_tabulated_ones(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, abs=5e-5)


def test_answers_that_agree_within_each_group_count_once_a_group() -> None:
    groups = np.repeat(np.arange(400), 5)
    alike = np.repeat(np.arange(400) % 2, 5)
    assert effective_total(alike.tolist(), groups.tolist()) == pytest.approx(400, rel=0.02)
    own = share_interval((np.arange(2000) % 2).tolist(), range(2000))
    grouped = share_interval(alike.tolist(), groups.tolist())
    assert own[1:] == wilson_interval(1000, 2000)
    assert (grouped.high - grouped.low) / (own.high - own.low) == pytest.approx(math.sqrt(5), rel=0.02)


def test_a_design_effect_below_one_narrows_nothing() -> None:
    """One right and one wrong answer in every group: the groups agree by construction, not by chance."""
    answers, groups = [0, 1] * 500, np.repeat(np.arange(500), 2).tolist()
    assert effective_total(answers, groups) <= 1000


@pytest.mark.parametrize("answer", [0, 1])
def test_equal_answers_count_as_one_a_group(answer: int) -> None:
    groups = np.repeat(np.arange(10), 10).tolist()
    assert share_interval([answer] * 100, groups)[1:] == pytest.approx(wilson_interval(10 * answer, 10))
    assert share_interval([answer] * 100, ["one"] * 100)[1:] == pytest.approx(wilson_interval(answer, 1))


def test_few_groups_widen_the_interval() -> None:
    answers = [1, 0] * 50
    wide = share_interval(answers, np.repeat([0, 1], 50).tolist())
    assert wide.low < 0.15 and wide.high > 0.85


@pytest.mark.parametrize("share", [0.6, 0.93])
def test_the_interval_covers_the_truth_where_answers_come_in_groups(share: float) -> None:
    """Correlation 0.3 within groups of ten: the plain interval is too narrow by a factor of two."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(80), 10).tolist()
    runs, covered, plain = 300, 0, 0
    for _ in range(runs):
        of_group = rng.beta(share / 0.3 * 0.7, (1 - share) / 0.3 * 0.7, 80)
        answers = (rng.random(800) < np.repeat(of_group, 10)).astype(float).tolist()
        found = share_interval(answers, groups)
        covered += found.low <= share <= found.high
        low, high = wilson_interval(sum(answers), 800)
        plain += low <= share <= high
    assert covered / runs > 0.92
    assert plain / runs < 0.8


def test_a_difference_of_matched_answers_is_agresti_and_mins() -> None:
    # Agresti and Min, section 4: n12 = 150, n21 = 86, n11 = 794, n22 = 570 of 1600 (approval ratings).
    first = [1] * (794 + 150) + [0] * (86 + 570)
    second = [1] * 794 + [0] * 150 + [1] * 86 + [0] * 570
    found = difference_interval(first, second, range(1600))
    assert found.value == pytest.approx(0.04)
    expected = 64 / 1602
    half = 1.959964 * math.sqrt(((150.5 + 86.5) - 64**2 / 1602) / 1602**2)
    assert found[1:] == pytest.approx((expected - half, expected + half), abs=1e-9)
    assert found[1:] == pytest.approx((0.021, 0.059), abs=1e-3)


def test_pairing_makes_a_difference_of_alike_systems_sure() -> None:
    first, second = [1, 0] * 200 + [1] * 20, [1, 0] * 200 + [0] * 20
    low = difference_interval(first, second, range(420)).low
    assert low > 0
    apart = [wilson_interval(sum(one), 420) for one in (first, second)]
    assert apart[0][0] < apart[1][1], "the two intervals overlap all the same"
    grouped = difference_interval(first, second, [*range(400), *[400] * 20])
    assert grouped.low < 0, "twenty questions about one picture are one picture"


@pytest.mark.parametrize(("first", "second", "value"), [(1, 1, 0.0), (1, 0, 1.0), (0, 1, -1.0)])
def test_a_difference_without_variance_still_has_a_width(first: int, second: int, value: float) -> None:
    found = difference_interval([first] * 10, [second] * 10, range(10))
    assert found.value == value and -1 <= found.low <= value <= found.high <= 1
    assert found.high - found.low > 0.1


def test_a_group_is_needed_for_every_value() -> None:
    with pytest.raises(ValueError, match="expected a group for each of 2 values, found 1"):
        effective_total([1, 0], ["a"])
