"""The order of rows whose pictures are read a block at a time, such as a row group of a Parquet file.

Rows in any order would read a whole block for each of them. So blocks come at random and are mixed a few at a time:
memory holds these few, every block is read about once an epoch (by each process that reads), and the order is still a
function of the seed and the epoch alone, so that a stopped run goes on at any row without reading those before it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from aligngpt.data.batches.rows import Rows
from aligngpt.data.samples.columns import Columns
from aligngpt.data.sources.stored_images import KEPT_BYTES

WINDOW_BLOCKS = 8
"""Blocks whose rows are mixed, at most."""

WINDOW_BYTES = KEPT_BYTES // 2
"""Of the blocks whose rows are mixed, at most; where one window ends and the next begins, memory holds two."""


@dataclass(frozen=True)
class Blocks:
    """The block that the pictures of each row are in; each `(rows,)`.

    Attributes:
        numbers: of the block, unique within its source; -1 for a row that can be read alone.
        sizes: bytes of the block.
        sources: which of several sources the row is of.
    """

    numbers: NDArray[np.int64]
    sizes: NDArray[np.int64]
    sources: NDArray[np.int64]

    @classmethod
    def of(cls, columns: Columns, rows: Rows) -> "Blocks | None":
        """Those of the rows' first samples; None where every row can be read alone."""
        first = columns.take(rows.first)
        return cls(first.blocks, first.block_bytes, first.sources) if (first.blocks >= 0).any() else None

    def arrange(self, order: NDArray[np.int64], generator: torch.Generator) -> NDArray[np.int64]:
        """Rows at random, arranged so that each source's blocks come a window at a time.

        The places that a source has in the order stay its own, so a mixture is as even as before. A row that comes
        twice comes in two passes over its source.

        Args:
            order: rows at random, `(drawn,)`.
            generator: of the order of the blocks.
        """
        arranged = order.copy()
        for source in np.unique(self.sources):
            places = np.flatnonzero((self.sources[order] == source) & (self.numbers[order] >= 0))
            if not len(places):
                continue
            rows = order[places]
            windows = self._windows(source, generator)[self.numbers[rows]]
            arranged[places] = rows[np.lexsort((windows, _times_before(rows)))]
        return arranged

    def _windows(self, source: int, generator: torch.Generator) -> NDArray[np.int64]:
        """The number of the window that each block of a source is in, `(blocks,)`."""
        inside = (self.sources == source) & (self.numbers >= 0)
        sizes = np.zeros(self.numbers[inside].max() + 1, dtype=np.int64)
        sizes[self.numbers[inside]] = self.sizes[inside]
        windows = np.empty_like(sizes)
        window = blocks = size = 0
        for block in torch.randperm(len(sizes), generator=generator).tolist():
            if blocks == WINDOW_BLOCKS or (blocks and size + sizes[block] > WINDOW_BYTES):
                window, blocks, size = window + 1, 0, 0
            windows[block] = window
            blocks, size = blocks + 1, size + sizes[block]
        return windows


def _times_before(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each row came before, `(drawn,)`."""
    order = np.argsort(rows, kind="stable")
    begins = np.flatnonzero(np.diff(rows[order], prepend=-1))
    counts = np.diff(begins, append=len(rows))
    times = np.empty_like(rows)
    times[order] = np.arange(len(rows)) - np.repeat(begins, counts)
    return times
