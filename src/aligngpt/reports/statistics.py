"""Confidence intervals of measured shares and of their differences, also for answers that come in groups.

Several questions about one picture are answered alike, so they say less than as many questions about different
pictures. Their interval uses the effective sample size n / deff, where the design effect deff is the cluster-robust
variance of the share over the variance of independent answers (Kish, "Survey Sampling", 1965).
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

Z = 1.959964
"""Quantile of the normal distribution that gives a 95 % interval."""


class Interval(NamedTuple):
    """A measured value and the two ends of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson_interval(correct: float, total: float, z: float = Z) -> tuple[float, float]:
    """Compute the confidence interval of a share from a number of trials.

    Wilson's score interval (E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", 1927). Unlike the normal approximation, it stays inside 0…1 and is usable for few trials.

    Args:
        correct: number of successes, 0…`total`.
        total: number of trials, or their effective number; for 0 the interval is (0, 1), since nothing is known.
        z: quantile of the normal distribution; the default gives 95 %.

    Returns:
        Lower and upper end, both in 0…1, with `correct / total` between them.

    Raises:
        ValueError: `correct` is not in 0…`total`.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"expected 0 ≤ correct ≤ total, found correct={correct}, total={total}")
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    spread = z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    # Rounding must not push the measured share out of its interval.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def effective_total(values: Sequence[float], groups: Sequence[Hashable]) -> float:
    """The number of independent values that determine a mean as well as these values in groups do.

    n / max(1, deff) · (1.96 / t)², where t is the 97.5 % quantile of Student's t with one degree of freedom fewer than
    there are groups (Korn and Graubard, "Confidence intervals for proportions with small expected number of positive
    counts estimated from survey data", Survey Methodology 24, 1998). If all values are equal, or in one group, deff
    cannot be estimated; then the values of a group count as one: n² / Σm², with m values in a group.

    Args:
        values: any numbers, `(values,)`.
        groups: the group of each value, such as its picture, `(values,)`.

    Returns:
        The number; exactly n if every value has its own group, and 0 without values.
    """
    if len(values) != len(groups):
        raise ValueError(f"expected a group for each of {len(values)} values, found {len(groups)}")
    total = len(values)
    sums, sizes = _by_group(values, groups)
    if len(sizes) == total:
        return float(total)
    bound = total**2 / float(sizes @ sizes)
    mean = float(sums.sum()) / total
    independent = float(np.var(np.asarray(values, dtype=np.float64))) / total
    if len(sizes) < 2 or independent <= 1e-12:
        return bound
    residuals = sums - mean * sizes
    clustered = len(sizes) / (len(sizes) - 1) * float(residuals @ residuals) / total**2
    return total / max(1.0, clustered / independent) * (Z / student_quantile(len(sizes) - 1)) ** 2


def share_interval(values: Sequence[float], groups: Sequence[Hashable]) -> Interval:
    """The mean of values in 0…1 (1 for a right answer) and its 95 % interval, which counts groups.

    Wilson's interval with `effective_total` as the number of trials; Wilson's interval itself if every value has its
    own group. Franco, Little, Louis and Slud recommend this form ("Comparative study of confidence intervals for
    proportions in complex sample surveys", Journal of Survey Statistics and Methodology 7, 2019).
    """
    if not len(values):
        return Interval(math.nan, 0.0, 1.0)
    share, total = float(np.mean(values)), effective_total(values, groups)
    return Interval(share, *wilson_interval(share * total, total))


def difference_interval(first: Sequence[float], second: Sequence[float], groups: Sequence[Hashable]) -> Interval:
    """The difference of two shares measured on the same questions, and its 95 % interval, which counts groups.

    Agresti and Min's interval for matched pairs, which adds half a question to each of the four outcomes and so has a
    width even if no question tells the two apart ("Simple improved confidence intervals for comparing matched
    proportions", Statistics in Medicine 24, 2005), with `effective_total` as the number of questions.

    Args:
        first: 1 for each question that the first system answered right, else 0, `(questions,)`.
        second: the same for the second system and the same questions.
        groups: the group of each question, such as its picture.

    Returns:
        Mean of `first` − `second` and the two ends, all in −1…1.
    """
    if not len(first):
        return Interval(math.nan, -1.0, 1.0)
    differences = np.subtract(np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64))
    total = effective_total(differences.tolist(), groups)
    measured, square = float(differences.mean()), float((differences**2).mean())
    # The added outcomes have the differences 0, 0, 1 and -1, half a question each.
    mean = measured * total / (total + 2)
    variance = (square * total + 1) / (total + 2) - mean**2
    half = Z * math.sqrt(variance / (total + 2))
    return Interval(measured, max(-1.0, min(mean - half, measured)), min(1.0, max(mean + half, measured)))


def student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, from its distribution function at whole degrees of freedom.

    Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4, inverted by bisection.
    """
    if freedom > 1000:
        return Z * (1 + (Z * Z + 1) / (4 * freedom))
    low, high = Z, 13.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """The probability that Student's t is between −t and t."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    series = 0.0
    for k in range(1 + odd, freedom, 2):
        series += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + sine * series) if odd else sine * series


def _by_group(values: Sequence[float], groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """The sum and the number of the values in each group."""
    sums: dict[Hashable, float] = defaultdict(float)
    sizes: dict[Hashable, int] = defaultdict(int)
    for value, group in zip(values, groups, strict=True):
        sums[group] += value
        sizes[group] += 1
    return np.array(list(sums.values()), dtype=np.float64), np.array(list(sizes.values()), dtype=np.float64)
