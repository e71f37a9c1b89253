"""One-pass statistics of any number of scored pairs in bounded memory."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Row = TypeVar("Row")

HISTOGRAM_BINS = 8192
FINEST_BIN = -40
"""Smallest bin width, as an exponent of two; no scores need a finer one."""

MOST_HASHES = 5_000_000
"""Number of distinct hashes that are counted: 120 MB, and briefly three times that while more are added."""

HASHES_AT_ONCE = 500_000

Z = 1.96
"""Half-width of the 95 % interval of a normal distribution, in standard deviations."""


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


class Repeated(NamedTuple):
    """A repeated hash: minimum count, one of its places (the first if all hashes are counted), maximum count."""

    times: int
    place: int
    most: int


class Estimate(NamedTuple):
    """An estimate and its approximate 95 % interval; all three values are equal if the number is exact."""

    value: int
    low: int
    high: int


class HashCounter:
    """Counts the occurrences of each hash.

    Up to `most` distinct hashes, all are counted; beyond that only those whose lowest bit is 0, then those whose two
    lowest bits are 0, and so on. The counts of sampled hashes are always complete. Such a sample may miss a large
    group, so from then on a frequent-items sketch (Anderson et al.: A High-Performance Algorithm for Identifying
    Frequent Items in Data Streams, IMC 2017; arXiv 1705.07001) also receives every hash and finds, with bounds, each
    group whose count exceeds the sketch's error.

    Args:
        most: maximum number of distinct hashes kept.

    Attributes:
        added: number of hashes added so far.
    """

    def __init__(self, most: int = MOST_HASHES) -> None:
        self.added = 0
        self._most = most
        self._bits = 0
        self._frequent: _Frequent | None = None
        self._waiting: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
        self._hashes = np.zeros(0, dtype=np.uint64)
        self._counts = np.zeros(0, dtype=np.int64)
        self._places = np.zeros(0, dtype=np.int64)

    def add(self, hashes: NDArray[np.uint64], places: NDArray[np.int64]) -> None:
        """Add hashes, which must be uniformly distributed, and the place of each one, `(hashes,)`."""
        self.added += len(hashes)
        if self._frequent is not None:
            self._frequent.add(hashes, np.ones(len(hashes), dtype=np.int64), places)
        counted = self._is_counted(hashes)
        self._waiting.append((hashes[counted], places[counted]))
        if sum(len(waiting) for waiting, _ in self._waiting) >= HASHES_AT_ONCE:
            self._merge()

    @property
    def share(self) -> float:
        """Approximate share (0…1) of the distinct hashes that is counted."""
        self._merge()
        return math.ldexp(1.0, -self._bits)

    def repeats(self) -> tuple[Estimate, Estimate]:
        """The number of hashes that occur more than once, and their total number of occurrences."""
        self._merge()
        large = self._large()
        # Groups found by the sketch must not be estimated from the sample again.
        known = np.isin(self._hashes, np.array(list(large), dtype=np.uint64))
        small = self._counts[(self._counts > 1) & ~known]
        groups = _scaled(np.ones(len(small), dtype=np.int64), self._bits, 1.0)
        pairs = _scaled(small, self._bits, 2.0)
        low, high = sum(group.times for group in large.values()), sum(group.most for group in large.values())
        return (
            Estimate(*(number + len(large) for number in groups)),
            Estimate(
                min(pairs.value + (low + high) // 2, self.added),
                min(pairs.low + low, self.added),
                min(pairs.high + high, self.added),
            ),
        )

    def largest(self, count: int) -> list[Repeated]:
        """The most frequent hashes that occur more than once, in descending order of their counts."""
        self._merge()
        found = self._large()
        several = np.flatnonzero(self._counts > 1)
        order = several[np.lexsort((self._places[several], -self._counts[several]))][:count]
        for at in order:
            times = int(self._counts[at])
            found[int(self._hashes[at])] = Repeated(times, int(self._places[at]), times)
        return sorted(found.values(), key=lambda group: (-group.times, group.place))[:count]

    def _large(self) -> dict[int, Repeated]:
        return {} if self._frequent is None else self._frequent.groups()

    def _is_counted(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        return (hashes & np.uint64((1 << self._bits) - 1)) == 0

    def _merge(self) -> None:
        if not self._waiting:
            return
        hashes = np.concatenate([self._hashes, *(hashes for hashes, _ in self._waiting)])
        places = np.concatenate([self._places, *(places for _, places in self._waiting)])
        counts = np.concatenate([self._counts, np.ones(len(hashes) - len(self._counts), dtype=np.int64)])
        self._waiting.clear()
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]]) if len(hashes) else np.zeros(0, dtype=np.int64)
        self._hashes = hashes[starts]
        if len(starts):
            self._counts = np.add.reduceat(counts[order], starts)
            self._places = np.minimum.reduceat(places[order], starts)
        while len(self._hashes) > self._most:
            if self._frequent is None:
                self._frequent = _Frequent(self._most)
                self._frequent.add(self._hashes, self._counts, self._places)
            self._bits += 1
            kept = self._is_counted(self._hashes)
            self._hashes, self._counts, self._places = self._hashes[kept], self._counts[kept], self._places[kept]


class _Frequent:
    """Frequent hashes, with bounds on their counts.

    Args:
        most: as for `HashCounter`; the sketch tracks at least an eighth as many hashes at a time.
    """

    def __init__(self, most: int) -> None:
        # Imported here because it is rarely needed.
        from datasketches import frequent_items_error_type, frequent_items_sketch

        size = max(3, math.ceil(math.log2(max(8, most / 8))))
        self._sketch: Any = frequent_items_sketch(size)
        self._sure: Any = frequent_items_error_type.NO_FALSE_POSITIVES
        self._room = 4 << size
        self._places: dict[int, int] = {}

    def add(self, hashes: NDArray[np.uint64], counts: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Add hashes with their counts and places, `(hashes,)`."""
        if not len(hashes):
            return
        unique, first, group = np.unique(hashes, return_index=True, return_inverse=True)
        times = np.bincount(group, counts).astype(np.int64)
        for hash, place, count in zip(unique.tolist(), places[first].tolist(), times.tolist(), strict=True):
            self._sketch.update(hash, count)
            self._places.setdefault(hash, place)
        if len(self._places) > self._room:
            self._places = {hash: at for hash, at in self._places.items() if self._sketch.get_estimate(hash) > 0}

    def groups(self) -> dict[int, Repeated]:
        """By hash: the hashes that certainly occur more than once and more often than the sketch's error."""
        return {
            hash: Repeated(low, self._places[hash], high)
            for hash, _, low, high in self._sketch.get_frequent_items(self._sure)
            if low > 1
        }


def _scaled(sizes: NDArray[np.int64], bits: int, least: float) -> Estimate:
    """Estimate the sum of all sizes from a sample of one in 2^bits: a score interval for a compound Poisson sum.

    Args:
        sizes: the sampled sizes.
        bits: see above.
        least: size assumed for the interval if the sample is empty.
    """
    total = int(sizes.sum())
    if not bits:
        return Estimate(total, total, total)
    typical = float((sizes.astype(np.float64) ** 2).sum()) / total if total else least
    number, square = total / typical, Z**2
    middle, half = number + square / 2, Z * math.sqrt(number + square / 4)
    low, high = (max(0.0, typical * end) * 2**bits for end in (middle - half, middle + half))
    return Estimate(total << bits, max(total, round(low)), round(high))


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
