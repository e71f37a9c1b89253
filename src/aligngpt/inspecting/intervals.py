"""Means with 95 % intervals that count pictures."""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from aligngpt.reports.statistics import student_quantile


class Mean(NamedTuple):
    """A mean and the ends of its 95 % interval, which are None if all values are about one picture."""

    value: float
    low: float | None
    high: float | None


def mean_interval(values: Sequence[float] | np.ndarray, groups: Sequence[Hashable]) -> Mean:
    """The mean of any numbers and its 95 % interval by Student's t, with the cluster-robust variance of the mean.

    The variance is G/(G-1) · Σ_g (Σ_{i in g} (x_i - mean))² / n², with n values in G groups, and t has G-1 degrees of
    freedom. If every value has its own group, this is the usual interval of a mean.

    Args:
        values: `(values,)`, at least one.
        groups: the picture of each value, `(values,)`.
    """
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean())
    sums: dict[Hashable, float] = defaultdict(float)
    for rest, group in zip((found - mean).tolist(), groups, strict=True):
        sums[group] += rest
    count = len(sums)
    if count < 2:
        return Mean(mean, None, None)
    variance = count / (count - 1) * sum(one * one for one in sums.values()) / len(found) ** 2
    half = student_quantile(count - 1) * math.sqrt(variance)
    return Mean(mean, mean - half, mean + half)
