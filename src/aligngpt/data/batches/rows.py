"""Assignment of samples to batch rows, vectorised over columns to be fast for hundreds of thousands of samples."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from aligngpt.data.records.sample import Sample
from aligngpt.data.samples.columns import columns_of


class Rows(Sequence[tuple[int, ...]]):
    """Rows, each a tuple of the indices of the samples that share it.

    Args:
        members: `(samples,)`, sample indices, row after row.
        starts: `(rows,)`, start of each row in `members`.
    """

    def __init__(self, members: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        self.members, self.starts = members, starts

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> tuple[int, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[int, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[int, ...] | list[tuple[int, ...]]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        stop = self.starts[row + 1] if row + 1 < len(self) else len(self.members)
        return tuple(self.members[self.starts[row] : stop].tolist())

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def first(self) -> NDArray[np.int64]:
        """Index of the first sample of each row, `(rows,)`."""
        return self.members[self.starts]

    def sums(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sum of a column's values per row, `(rows,)`."""
        return np.add.reduceat(values[self.members], self.starts) if len(self) else values[:0]


def rows_of(samples: Sequence[Sample], questions_per_prefix: int, *, by_level: bool = True) -> Rows:
    """Group samples into rows of indices into `samples`.

    Samples of one source with the same images and system prompt (and, if `by_level`, the same level) are split into the
    smallest number of rows of at most `questions_per_prefix` samples, of about equal size: chat templates write the
    system prompt before the images, so these are in the common prefix only if it is the same. Samples without an image
    get a row each: they have no prefix to share. So do interleaved samples, whose images are not all in the prefix.
    """
    places = np.arange(len(samples))
    if questions_per_prefix == 1 or not len(samples):
        return Rows(places, places)
    columns = columns_of(samples)
    alone = np.where((columns.images == 0) | (columns.interleaved == 1), places + 1, 0)
    keys = (columns.levels * by_level, columns.keys, columns.systems, columns.sources, alone)
    order = np.lexsort((places, *keys))
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = np.logical_or.reduce([key[order][1:] != key[order][:-1] for key in keys])
    starts = np.flatnonzero(begins)
    sizes = np.diff(starts, append=len(order))
    # Groups are ordered by their first sample.
    by_first = np.argsort(order[starts])
    counts = -(-sizes // questions_per_prefix)
    first_row = np.empty_like(counts)
    first_row[by_first] = np.cumsum(counts[by_first]) - counts[by_first]
    group = np.cumsum(begins) - 1
    # Distribute samples round-robin, so that neighbours in the file, which are often similar, go to different rows.
    row = first_row[group] + (places - starts[group]) % counts[group]
    by_row = np.lexsort((order, row))
    return Rows(order[by_row], np.flatnonzero(np.diff(row[by_row], prepend=-1)))
