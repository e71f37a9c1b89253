"""The pictures of Parquet files, read a row group at a time; those that were used last are kept in memory."""

from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow

from aligngpt.data.archive_records import stored_bytes
from aligngpt.data.images import ImageError
from aligngpt.data.pair_parquet import BATCH_ROWS, open_parquet
from aligngpt.data.source_error import SourceError

KEPT_BYTES = 1 << 30
"""Of row groups that are kept, in each process and for each source; the last one is kept however large it is."""


class _Group(NamedTuple):
    batches: list[Any]
    stops: list[int]
    size: int


class RowGroups:
    """The picture columns of row groups.

    Attributes:
        reads: how many row groups were read so far.
    """

    def __init__(self) -> None:
        self.reads = 0
        self._kept: OrderedDict[tuple[Path, int], _Group] = OrderedDict()

    def picture(self, path: Path, column: str, group: int, row: int) -> bytes:
        """The encoded picture in a row of a row group.

        Raises:
            ImageError: the file or the row group cannot be read any more, or has no picture there.
        """
        found = self._group(path, column, group)
        batch = bisect_right(found.stops, row)
        if batch < len(found.batches):
            cell = found.batches[batch].column(0)[row - (found.stops[batch - 1] if batch else 0)].as_py()
            if (content := stored_bytes(cell)) is not None:
                return content
        raise ImageError("missing", f"{path} has no picture in row {row} of row group {group}; it has changed")

    def _group(self, path: Path, column: str, group: int) -> _Group:
        key = (path, group)
        if key not in self._kept:
            read = _read(path, column, group)
            self.reads += 1
            kept = sum(one.size for one in self._kept.values())
            while self._kept and kept + read.size > KEPT_BYTES:
                kept -= self._kept.popitem(last=False)[1].size
            self._kept[key] = read
        self._kept.move_to_end(key)
        return self._kept[key]


def _read(path: Path, column: str, group: int) -> _Group:
    try:
        with open_parquet(path) as file:
            # In batches, for a column of more than 2 GB has no single array; a loader worker has no other threads.
            batches = list(
                file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=[column], use_threads=False)
            )
    except (SourceError, pyarrow.ArrowException, OSError) as error:
        raise ImageError("unreadable", f"{path}: row group {group} cannot be read: {error}") from error
    stops = list(accumulate(batch.num_rows for batch in batches))
    return _Group(batches, stops, sum(batch.nbytes for batch in batches))
