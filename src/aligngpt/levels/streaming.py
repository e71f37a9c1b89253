"""One-pass statistics of any number of scored pairs in bounded memory."""

import math
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Row = TypeVar("Row")

HISTOGRAM_BINS = 8192
FINEST_BIN = -40
"""Smallest bin width, as an exponent of two; no scores need a finer one."""


class ScoreHistogram:
    """Histogram of scores in bins of equal width, with their mean, deviation, range and quantiles.

    The bin width is a power of two and doubles whenever the scores would need more than `HISTOGRAM_BINS` bins:
    neighbouring bins are then merged in pairs, and no count is lost.

    Attributes:
        count: number of scores added so far.
        mean: mean of these scores.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0
        self._minimum, self._maximum = math.inf, -math.inf
        self._exponent = FINEST_BIN
        self._first = 0
        self._counts = np.zeros(0, dtype=np.int64)

    def add(self, scores: NDArray[np.float64]) -> None:
        """Add finite scores, `(scores,)`."""
        if not scores.size:
            return
        self._measure(scores)
        exponent = self._exponent
        while not self._fits(exponent):
            exponent += 1
        if exponent > self._exponent and len(self._counts):
            self._first, self._counts = _merged(self._first, self._counts, exponent - self._exponent)
        self._exponent = exponent
        low, high = _bin(self._minimum, exponent), _bin(self._maximum, exponent)
        places = np.floor(np.ldexp(scores, -exponent)).astype(np.int64) - low
        counts = np.bincount(places, minlength=high - low + 1).astype(np.int64)
        start = self._first - low if len(self._counts) else 0
        counts[start : start + len(self._counts)] += self._counts
        self._first, self._counts = low, counts

    @property
    def standard_deviation(self) -> float:
        """The population standard deviation; 0 if there are no scores."""
        return math.sqrt(self._squares / self.count) if self.count else 0.0

    def quantile(self, share: float) -> float:
        """The score below which a share (0…1) of the scores lies; accurate to a bin width, and exact for 0 and 1."""
        if not self.count or share <= 0:
            return self._minimum if self.count else math.nan
        if share >= 1:
            return self._maximum
        up_to = np.cumsum(self._counts)
        wanted = share * self.count
        place = int(np.searchsorted(up_to, wanted))
        inside = (wanted - (up_to[place] - self._counts[place])) / self._counts[place]
        score = math.ldexp(self._first + place + inside, self._exponent)
        return min(max(score, self._minimum), self._maximum)

    def drawn(self, most: int) -> tuple[list[int], list[float]]:
        """Counts `(bins,)` and edges `(bins + 1,)` of a histogram with wider bins, at most `most` (2 or more)."""
        shift = 0
        first, counts = self._first, self._counts
        while len(counts) > most:
            shift += 1
            first, counts = _merged(self._first, self._counts, shift)
        edges = [math.ldexp(first + place, self._exponent + shift) for place in range(len(counts) + 1)]
        return counts.tolist(), edges

    def _fits(self, exponent: int) -> bool:
        # Below 2^52 every bin index is exact as a float.
        far = max(abs(self._minimum), abs(self._maximum))
        return far < math.ldexp(1.0, exponent + 52) and (
            _bin(self._maximum, exponent) - _bin(self._minimum, exponent) < HISTOGRAM_BINS
        )

    def _measure(self, scores: NDArray[np.float64]) -> None:
        """Update count, mean, sum of squares and range: Chan, Golub and LeVeque, 1979."""
        mean, before = float(scores.mean()), self.count
        self.count += scores.size
        shift = mean - self.mean
        self.mean += shift * scores.size / self.count
        self._squares += float(((scores - mean) ** 2).sum()) + shift**2 * before * scores.size / self.count
        self._minimum = min(self._minimum, float(scores.min()))
        self._maximum = max(self._maximum, float(scores.max()))


class Smallest(Generic[Row]):
    """Keeps the rows with the smallest keys; among equal keys, the first. With random keys, a random sample.

    Args:
        size: number of rows to keep, at least 1.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: list[tuple[float, Row]] = []

    def add(self, keys: NDArray[np.float64], row: Callable[[int], Row]) -> None:
        """Add rows.

        Args:
            keys: `(rows,)`.
            row: returns the row at an index of `keys`; called only for rows that may be kept.
        """
        bound = self._kept[-1][0] if len(self._kept) == self._size else math.inf
        places = np.flatnonzero(keys < bound)
        places = places[np.argsort(keys[places], kind="stable")][: self._size]
        self._kept += [(float(keys[place]), row(int(place))) for place in places]
        self._kept.sort(key=lambda kept: kept[0])
        del self._kept[self._size :]

    def rows(self) -> list[Row]:
        """The rows in ascending order of their keys."""
        return [row for _, row in self._kept]


class Bin(NamedTuple):
    """Score statistics of the pairs in one bin."""

    name: str
    pairs: int
    mean: float
    deviation: float


class BinnedScores:
    """Mean scores by a positive integer, such as the length of the caption.

    Args:
        edges: lower ends of the bins, ascending from 1; the last bin has no upper end.
    """

    def __init__(self, edges: Sequence[int]) -> None:
        self._edges = np.asarray(edges, dtype=np.int64)
        # Scores are summed as differences from the first, so that small ones far from zero are not rounded away.
        self._first: float | None = None
        # Per bin: number of pairs, sum of scores, sum of squared scores.
        self._sums = np.zeros((3, len(edges)))
        # Over all pairs: sums of the logarithm, of its square, and of its product with the score.
        self._logs = np.zeros(3)

    def add(self, values: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        """Add pairs, `(pairs,)`."""
        if not len(scores):
            return
        if self._first is None:
            self._first = float(scores[0])
        scores = scores - self._first
        bins = (np.searchsorted(self._edges, values, side="right") - 1).clip(min=0)
        for sums, weights in zip(self._sums, (np.ones(len(scores)), scores, scores**2), strict=True):
            sums += np.bincount(bins, weights, minlength=len(self._edges))
        logs = np.log2(np.maximum(values, 1))
        self._logs += (logs.sum(), (logs**2).sum(), (logs * scores).sum())

    def bins(self) -> list[Bin]:
        """The non-empty bins."""
        found = []
        for index, (count, total, squares) in enumerate(self._sums.T):
            if count:
                mean = total / count
                deviation = math.sqrt(max(0.0, squares / count - mean**2))
                found.append(Bin(self._name(index), int(count), float((self._first or 0.0) + mean), deviation))
        return found

    def correlation(self) -> float | None:
        """Pearson's correlation of the score and the logarithm; None if either is the same for all pairs."""
        count, total, squares = self._sums.sum(axis=1)
        if not count:
            return None
        mean, log = total / count, self._logs[0] / count
        spread = max(0.0, squares / count - mean**2) * max(0.0, self._logs[1] / count - log**2)
        return float((self._logs[2] / count - mean * log) / math.sqrt(spread)) if spread > 1e-18 else None

    def _name(self, index: int) -> str:
        low = int(self._edges[index])
        if index + 1 == len(self._edges):
            return f"{low}+"
        high = int(self._edges[index + 1]) - 1
        return str(low) if low == high else f"{low}–{high}"


def _bin(score: float, exponent: int) -> int:
    return math.floor(math.ldexp(score, -exponent))


def _merged(first: int, counts: NDArray[np.int64], shift: int) -> tuple[int, NDArray[np.int64]]:
    """The index of the first of the bins that are 2^shift times as wide, and their counts."""
    places = (first + np.arange(len(counts))) >> shift
    start = int(places[0])
    starts = np.flatnonzero(np.r_[True, places[1:] != places[:-1]])
    return start, np.add.reduceat(counts, starts)
