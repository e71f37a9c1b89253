"""Statistics of differences between two arms that are paired by seed.

Two runs of the same seed share initialisation, order of data and questions. Where that makes them alike, their
difference varies less than that of two unrelated runs; the correlation over seeds says whether it does, see `Contrast`.
What is asked is whether a method helps, not whether one checkpoint beats another, so the unit is the seed.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aligngpt.study.pairs import StudyError

CONFIDENCE = 0.95
POWER = 0.8
MOST_SEEDS = 10_000
DRAWS = 2000


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
        value: the mean.
        low, high: ends of its 95 % interval; infinite if the spread cannot be estimated.
        p: two-sided p-value for a true mean of 0; 1 if the spread cannot be estimated.
        deviation: standard deviation over seeds; NaN for one seed.
        seeds: number of seeds.
    """

    value: float
    low: float
    high: float
    p: float
    deviation: float
    seeds: int

    @property
    def is_known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low)


def estimate(values: ArrayLike) -> Estimate:
    """The mean of one value per seed with its t interval and test ("Student", Biometrika 6, 1908).

    Of one seed, or of seeds that all have exactly the same value, the spread cannot be estimated: the interval is
    then infinite and p is 1.

    Args:
        values: one per seed, `(seeds,)`; for a contrast, the differences.

    Raises:
        ValueError: there are none.
    """
    array = np.asarray(values, dtype=np.float64)
    seeds = len(array)
    if not seeds:
        raise ValueError("expected a value of at least one seed, found none")
    mean = float(array.mean())
    deviation = float(array.std(ddof=1)) if seeds > 1 else math.nan
    if not _is_spread(deviation, mean):
        return Estimate(mean, -math.inf, math.inf, 1.0, deviation, seeds)
    error = deviation / math.sqrt(seeds)
    student = _stats().t(seeds - 1)
    half = float(student.ppf((1 + CONFIDENCE) / 2)) * error
    return Estimate(mean, mean - half, mean + half, float(2 * student.sf(abs(mean) / error)), deviation, seeds)


def equivalence(found: Estimate, bound: float) -> float:
    """The p-value of two one-sided t tests that a difference is beyond ±`bound` (Schuirmann, 1987).

    Below 0.05 the two arms count as equivalent. It is 1 if the spread cannot be estimated.

    Args:
        found: the mean difference.
        bound: the smallest difference that matters, above 0, in the same unit.
    """
    if not bound > 0:
        raise ValueError(f"the bound of equivalence must be above 0, found {bound}")
    if not found.is_known:
        return 1.0
    error = found.deviation / math.sqrt(found.seeds)
    student = _stats().t(found.seeds - 1)
    return max(float(student.sf((found.value + bound) / error)), float(student.cdf((found.value - bound) / error)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests, in the given order (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def seeds_needed(deviation: float, difference: float) -> int | None:
    """The number of seeds with which a paired t test (two-sided, 5 %) finds a true difference with power 80 %.

    Of a single test: with a correction for several, more are needed.

    The power is that of the noncentral t distribution (Cohen, "Statistical Power Analysis", 1988).

    Args:
        deviation: standard deviation of the per-seed difference.
        difference: the difference to be found, above 0, in the same unit.

    Returns:
        The number, at least 2; None if the deviation is not known, or if 10,000 seeds are too few.
    """
    if not math.isfinite(deviation) or not difference > 0:
        return None
    low, high = 1, MOST_SEEDS
    if _power(high, deviation, difference) < POWER:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, deviation, difference) >= POWER else (middle, high)
    return high


def bootstrap(
    differences: NDArray[np.float64], images: Sequence[int], *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """A 95 % interval of the mean difference over other seeds and other pictures.

    Seeds and pictures are drawn with replacement, independently of each other, because all seeds are tested on the
    same pictures: what a picture contributes is shared by them and does not average out over seeds (Owen, "The
    pigeonhole bootstrap", Annals of Applied Statistics 1, 2007). With few seeds the interval, which is of percentiles,
    makes too little of the spread over seeds, by a factor of about √((seeds − 1) / seeds); and the variance of what
    is particular to one seed and one picture counts nearly three times (Owen, equation 7), so that where this is most
    of the variance the interval is too wide. The t interval is the one to go by.

    Args:
        differences: per seed and question, `(seeds, questions)`.
        images: number of each question's picture, `(questions,)`; questions of a picture are drawn together.
        draws: number of resamples.
        seed: of the draws.

    Returns:
        The two ends; infinite for one seed or one picture.
    """
    names, places = np.unique(np.asarray(images), return_inverse=True)
    if len(differences) < 2 or len(names) < 2:
        return -math.inf, math.inf
    sizes = np.bincount(places, minlength=len(names)).astype(np.float64)
    sums = np.stack([np.bincount(places, row, len(names)) for row in differences])
    rng = np.random.default_rng(seed)
    of_seeds = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), draws) / len(sums)
    of_pictures = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    means = np.einsum("ds,sp,dp->d", of_seeds, sums, of_pictures, optimize=True) / (of_pictures @ sizes)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _is_spread(deviation: float, mean: float) -> bool:
    """Whether a deviation is more than the rounding of equal values."""
    return math.isfinite(deviation) and deviation > 1e-12 * max(1.0, abs(mean))


def _power(seeds: int, deviation: float, difference: float) -> float:
    if seeds < 2:
        return 0.0
    if deviation == 0:
        return 1.0
    stats = _stats()
    shift = difference / deviation * math.sqrt(seeds)
    edge = stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1)
    # Far from 0 the noncentral distribution cannot be computed; there the power is above 95 %, even of two seeds.
    if shift > 30:
        return 1.0
    # The other tail is below 0.0001 wherever the power is near 80 %, and SciPy often gives NaN for it.
    return float(stats.nct.sf(edge, seeds - 1, shift))


def _stats() -> Any:
    try:
        return importlib.import_module("scipy.stats")
    except ImportError as error:
        raise StudyError("the analysis of a study needs SciPy; install it: pip install 'aligngpt[study]'") from error
