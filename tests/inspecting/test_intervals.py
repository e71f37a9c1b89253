"""Intervals of means count pictures."""

import numpy as np
import pytest

from aligngpt.inspecting.intervals import mean_interval


def test_values_about_different_pictures_have_student_s_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 12)
    found = mean_interval(values, range(12))
    # The 97.5 % quantile of Student's t with 11 degrees of freedom, from printed tables.
    half = 2.200985 * values.std(ddof=1) / np.sqrt(12)
    assert found == pytest.approx((values.mean(), values.mean() - half, values.mean() + half), abs=1e-5)


def test_equal_values_about_one_picture_count_once() -> None:
    values = np.random.default_rng(1).normal(size=7)
    repeated = mean_interval(np.repeat(values, 5), np.repeat(range(7), 5).tolist())
    assert repeated == pytest.approx(mean_interval(values, range(7)))


def test_values_about_one_picture_have_no_interval() -> None:
    assert mean_interval([1.0, 3.0], ["a", "a"]) == (2.0, None, None)
