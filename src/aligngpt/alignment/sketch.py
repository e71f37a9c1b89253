"""Levels of scores that may not fit in memory: exact up to `EXACT_SCORES`, then approximate by a quantile sketch.

The sketch is KLL (Karnin, Lang, Liberty: Optimal Quantile Approximation in Streams, FOCS 2016; arXiv 1603.05346). It is
randomised, so the borders of two runs may differ within its rank error; `levels.json` records those of one run.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aligngpt.alignment.levels import (
    AlignmentLevels,
    LevelMethod,
    LevelsError,
    ScoreStatistics,
    find_borders,
    fit_levels,
)

EXACT_SCORES = 50_000_000
"""Number of scores up to which all are kept: 400 MB, and briefly twice that while they are sorted."""

SKETCH_SIZE = 4096
"""KLL's k: a rank error of about 0.07 % at 99 % confidence, in some 100 kB."""


class ScoreCollector:
    """Collects scores in batches and finds the levels of all of them in bounded memory.

    Attributes:
        count: number of scores added so far.

    Example:
        >>> collector = ScoreCollector()
        >>> collector.add([0.31, 0.12, 0.25])
        >>> collector.fit(3).borders
        (0.185, 0.28)
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = 0.0
        self._squares = 0.0
        self._minimum, self._maximum = math.inf, -math.inf
        self._kept: list[NDArray[np.float64]] = []
        self._sketch: Any = None

    def add(self, scores: ArrayLike) -> None:
        """Add scores of any shape.

        Raises:
            LevelsError: a score is NaN or infinite.
        """
        values = np.asarray(scores, dtype=np.float64).ravel()
        if not values.size:
            return
        if unusable := int(np.count_nonzero(~np.isfinite(values))):
            raise LevelsError(f"{unusable} scores are NaN or infinite; exclude these pairs")
        self._measure(values)
        self._kept.append(values)
        if self.count > EXACT_SCORES:
            self._to_sketch()

    def fit(self, num_levels: int = 8, method: LevelMethod = "quantile") -> AlignmentLevels:
        """The levels of all scores added so far; see `fit_levels`.

        Raises:
            LevelsError: there are too few distinct scores for N levels.
        """
        if self._sketch is None:
            return fit_levels(np.concatenate(self._kept) if self._kept else [], num_levels, method)
        statistics = ScoreStatistics(
            count=self.count,
            mean=self._mean,
            standard_deviation=math.sqrt(self._squares / self.count),
            minimum=self._minimum,
            maximum=self._maximum,
        )
        if method == "width":
            # The minimum and maximum are known exactly.
            ends = np.array([self._minimum, self._maximum])
            return AlignmentLevels(find_borders(ends, num_levels, method), method, statistics)
        pairs = np.array(list(self._sketch), dtype=np.float64)
        pairs = pairs[np.argsort(pairs[:, 0])]
        borders = find_borders(pairs[:, 0], num_levels, method, pairs[:, 1].astype(np.int64))
        return AlignmentLevels(borders, method, statistics, float(self._sketch.normalized_rank_error(False)))

    def _measure(self, values: NDArray[np.float64]) -> None:
        """Update count, mean, sum of squares and range: Chan, Golub and LeVeque, 1979."""
        mean, before = float(values.mean()), self.count
        self.count += values.size
        shift = mean - self._mean
        self._mean += shift * values.size / self.count
        self._squares += float(((values - mean) ** 2).sum()) + shift**2 * before * values.size / self.count
        self._minimum = min(self._minimum, float(values.min()))
        self._maximum = max(self._maximum, float(values.max()))

    def _to_sketch(self) -> None:
        if self._sketch is None:
            # Imported here because it is rarely needed.
            from datasketches import kll_doubles_sketch

            self._sketch = kll_doubles_sketch(SKETCH_SIZE)
        for values in self._kept:
            self._sketch.update(values)
        self._kept.clear()
