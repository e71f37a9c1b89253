"""The order of rows whose images are read one block at a time, such as a row group of a Parquet file.

In a fully random order, each row would read a whole block. So the blocks are shuffled, and rows are shuffled within a
window of a few blocks: memory holds only these, every block is read about once per epoch (by each reading process), and
the order still depends only on seed and epoch, so that a run can resume at any row without reading those before it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from aligngpt.data.batches.rows import Rows
from aligngpt.data.samples.columns import Columns
from aligngpt.data.sources.stored_images import KEPT_BYTES

WINDOW_BLOCKS = 8
"""Maximum number of blocks in a window."""

WINDOW_BYTES = KEPT_BYTES // 2
"""Maximum bytes of the blocks in a window; at the boundary of two windows, memory holds both."""


@dataclass(frozen=True)
class Blocks:
    """The block that holds the images of each row; each array is `(rows,)`.

    Attributes:
        numbers: block number, unique within its source; -1 for a row that can be read alone.
        sizes: bytes of the block.
        sources: number of the row's source.
    """

    numbers: NDArray[np.int64]
    sizes: NDArray[np.int64]
    sources: NDArray[np.int64]

    @classmethod
    def of(cls, columns: Columns, rows: Rows) -> "Blocks | None":
        """The blocks of each row's first sample; None if every row can be read alone."""
        first = columns.take(rows.first)
        return cls(first.blocks, first.block_bytes, first.sources) if (first.blocks >= 0).any() else None

    def arrange(self, order: NDArray[np.int64], generator: torch.Generator) -> NDArray[np.int64]:
        """Rearrange a random order so that each source is read one window of blocks at a time.

        Each source keeps its positions in the order, so sources stay as evenly mixed as before. Repeated rows are read
        in separate passes over their source.

        Args:
            order: rows in random order, `(drawn,)`.
            generator: for the order of the blocks.
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
        """The window number of each block of a source, `(blocks,)`."""
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
    """How often the row at each position occurred before it, `(drawn,)`."""
    order = np.argsort(rows, kind="stable")
    begins = np.flatnonzero(np.diff(rows[order], prepend=-1))
    counts = np.diff(begins, append=len(rows))
    times = np.empty_like(rows)
    times[order] = np.arange(len(rows)) - np.repeat(begins, counts)
    return times
