"""Repeated hashes among any number of them, counted in one pass and bounded memory."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_HASHES = 5_000_000
"""Number of distinct hashes that are counted: 120 MB, and briefly three times that while more are added."""
HASHES_AT_ONCE = 500_000
Z = 1.96
"""Half-width of the 95 % interval of a normal distribution, in standard deviations."""


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
