"""Pairs in Parquet files: paths of pictures, or the pictures themselves."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from aligngpt.data.pair_columns import ColumnNames, Columns, pair_of_row
from aligngpt.data.pair_files import files_fingerprint
from aligngpt.data.pairs import Pair, PairSource, Shard, Unusable, read_with
from aligngpt.data.sources import SourceError

BATCH_ROWS = 64
"""Rows in memory at a time; each may carry a picture of some megabytes."""

READ_BUFFER = 1 << 20
"""Bytes read at a time from each column."""


class ParquetPairs(PairSource):
    """Parquet files of one data set, cut at row groups, and row groups into shards.

    Args:
        folder: the folder that the files' names are told from.
        files: the files, in order.
        root: folder that paths of pictures start from.
        shard_size: at most so many rows a shard.
        names: which columns to read.
    """

    kind = "parquet"

    def __init__(self, folder: Path, files: Sequence[Path], root: Path, shard_size: int, names: ColumnNames) -> None:
        self.folder = folder
        self.files = tuple(files)
        self.root = root
        self.shard_size = shard_size
        self.names = names
        self._shards: tuple[Shard, ...] = ()
        self._columns: set[Columns] = set()

    def shards(self) -> Sequence[Shard]:
        if not self._shards:
            self._shards = tuple(self._cut())
            if not self._shards:
                raise SourceError(f"{self.folder} holds no record: its {len(self.files)} Parquet files have no rows")
        return self._shards

    def read(self, shard: Shard) -> Iterator[Pair | Unusable]:
        assert shard.path is not None
        record = 0
        with open_parquet(shard.path) as file:
            columns = self.names.found_in(file.schema_arrow.names, str(shard.path))
            try:
                for row in read_rows(file, shard, columns.all()):
                    number = shard.first + record
                    place = f"row {number} of {shard.path.name}"
                    if isinstance(row, UnicodeDecodeError):
                        yield Unusable(record, None, "broken_text", f"{place} is not UTF-8")
                    else:
                        yield pair_of_row(row, columns, record=record, number=number, root=self.root, place=place)
                    record += 1
            except (pyarrow.ArrowException, OSError) as error:
                detail = f"{shard.path}: row group {shard.group} cannot be read from row {record} of it on: {error}"
                yield Unusable(record, None, "broken_parquet", detail)

    def fingerprint(self) -> str:
        return files_fingerprint(self.files, self.folder)

    def settings(self) -> dict[str, str | None]:
        self.shards()
        # Files may differ in their columns, and then the usual names find another one in each.
        caption, image, id = (
            ", ".join(sorted({name for name in names if name is not None})) or None
            for names in zip(*((found.caption, found.image, found.id) for found in self._columns), strict=True)
        )
        return read_with(caption=caption, image=image, id=id, root=self.root, base=self.folder)

    def _cut(self) -> Iterator[Shard]:
        index = first = 0
        for path in self.files:
            name = path.relative_to(self.folder).as_posix()
            with open_parquet(path) as file:
                self._columns.add(self.names.found_in(file.schema_arrow.names, str(path)))
                groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            begin = 0
            for group, rows in enumerate(groups):
                for start in range(0, rows, self.shard_size):
                    stop = min(start + self.shard_size, rows)
                    whole = f"{name}[{begin + start}:{begin + stop}]"
                    yield Shard(index, whole, stop - start, path=path, start=start, stop=stop, first=first, group=group)
                    index, first = index + 1, first + stop - start
                begin += rows


def open_parquet(path: Path) -> Any:
    """A Parquet file of which a batch is in memory at a time.

    Raises:
        SourceError: it is none that can be read.
    """
    try:
        # Otherwise the columns of a whole row group, pictures and all, are in memory at once.
        return pyarrow.parquet.ParquetFile(path, buffer_size=READ_BUFFER, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise SourceError(f"{path} is no Parquet file that can be read: {error}") from error


def read_rows(file: Any, shard: Shard, columns: list[str]) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """The shard's rows; rows of the row group that stand before it are read past."""
    at = 0
    # Threads would read ahead, past what a batch needs.
    batches = file.iter_batches(batch_size=BATCH_ROWS, row_groups=[shard.group], columns=columns, use_threads=False)
    for batch in batches:
        start, stop = max(shard.start - at, 0), min(shard.stop - at, batch.num_rows)
        if start < stop:
            yield from _values(batch.slice(start, stop - start))
        at += batch.num_rows
        if at >= shard.stop:
            return


def _values(batch: Any) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        # Nothing was given out yet: the conversion is of the whole batch. Which row is it?
        if batch.num_rows == 1:
            yield error
            return
        for row in range(batch.num_rows):
            yield from _values(batch.slice(row, 1))
