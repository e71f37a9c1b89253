"""Arrow files of a data set saved by `save_to_disk`, read in place as Parquet files are."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import pyarrow

from aligngpt.data.sources.base import SourceError

SUFFIX = ".arrow"


class ArrowFile:
    """A memory-mapped Arrow file with the part of `pyarrow.parquet.ParquetFile`'s interface that sources use.

    Its record batches are what row groups are in Parquet.

    Attributes:
        schema_arrow: the columns.
        metadata: `num_rows`, and `row_group(i).num_rows`.

    Args:
        path: a file in Arrow's stream format.

    Raises:
        SourceError: it is not a readable Arrow file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._mapped = pyarrow.memory_map(str(path))
            with pyarrow.ipc.open_stream(self._mapped) as stream:
                self.schema_arrow = stream.schema
                # The batches refer to the mapped file: no column is in memory before it is used.
                self._batches = list(stream)
        except (pyarrow.ArrowException, OSError) as error:
            raise SourceError(f"{path} is not a readable Arrow file: {error}; save the data set again") from error
        groups = [SimpleNamespace(num_rows=batch.num_rows) for batch in self._batches]
        self.metadata = SimpleNamespace(num_rows=sum(one.num_rows for one in groups), row_group=groups.__getitem__)

    @property
    def num_row_groups(self) -> int:
        """The number of record batches."""
        return len(self._batches)

    def iter_batches(
        self, *, batch_size: int, row_groups: Sequence[int], columns: Sequence[str], use_threads: bool = False
    ) -> Iterator[Any]:
        """Yield columns of some record batches in parts of at most `batch_size` rows, as `ParquetFile` does."""
        for group in row_groups:
            batch = self._batches[group].select(list(columns))
            for start in range(0, batch.num_rows, batch_size):
                yield batch.slice(start, batch_size)

    def __enter__(self) -> "ArrowFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: batches that are in use keep the file mapped."""
