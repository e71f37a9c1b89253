"""Rows of Parquet files and of saved data sets, with image paths or the images themselves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from aligngpt.data.sources.arrow import SUFFIX, ArrowFile
from aligngpt.data.sources.base import BrokenRecord, ReadColumns, Record, RecordSource, Shard, SourceError, StoredAt
from aligngpt.data.sources.fields import ColumnNames, listed
from aligngpt.data.sources.fingerprints import files_fingerprint
from aligngpt.data.sources.remote import RemotePath

BATCH_ROWS = 64
"""Rows in memory at a time; each may hold an image of several megabytes."""

READ_BUFFER = 1 << 20
"""Bytes read at a time from each column."""


class ParquetSource(RecordSource):
    """Parquet files (or the Arrow files of a saved data set), split at row groups, and row groups into shards.

    Args:
        folder: the folder that the files' names are relative to.
        files: the files, in order.
        shard_size: maximum number of rows per shard.
        names: which columns to read.
    """

    kind = "parquet"

    def __init__(self, folder: Path, files: Sequence[Path], shard_size: int, names: ColumnNames) -> None:
        self.folder = self.base = folder
        self.files = tuple(files)
        self.shard_size = shard_size
        self.names = names
        self._shards: tuple[Shard, ...] = ()
        self._columns: set[ReadColumns] = set()

    def shards(self) -> Sequence[Shard]:
        if not self._shards:
            self._shards = tuple(self._cut())
            if not self._shards:
                raise SourceError(f"{self.folder} has no records: its {len(self.files)} files have no rows")
        return self._shards

    def read(self, shard: Shard) -> Iterator[Record | BrokenRecord]:
        assert shard.path is not None
        with open_parquet(shard.path) as file:
            columns = self.names.found_in(file.schema_arrow.names, str(shard.path))
            for record in read_records(file, shard, columns.all(), f"row {{}} of {shard.path.name}"):
                yield record._replace(columns=columns) if isinstance(record, Record) else record

    def read_all(
        self, wanted: Callable[[pyarrow.Schema, str], list[str]]
    ) -> Iterator[tuple[StoredAt, Record | BrokenRecord]]:
        """Yield the rows of all files, numbered consecutively across files, each with its position in its file.

        Args:
            wanted: returns the columns to read, given the schema of a file and its name.

        Raises:
            SourceError: a file cannot be opened, or `wanted` rejects it.
        """
        first = 0
        for number, path in enumerate(self.files):
            name = path.relative_to(self.folder).as_posix()
            with open_parquet(path) as file:
                columns = wanted(file.schema_arrow, str(path))
                in_file = 0
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    shard = Shard(group, path.name, rows, path=path, stop=rows, first=in_file, group=group)
                    for record in read_records(file, shard, columns, f"{name}[{{}}]"):
                        yield StoredAt(number, group, record.number, 0), record._replace(number=first)
                        first += 1
                    in_file += rows

    def fingerprint(self) -> str:
        return files_fingerprint(self.files, self.folder)

    def columns(self) -> set[ReadColumns]:
        self.shards()
        return self._columns

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
    """Open a Parquet file, or an Arrow file of a saved data set, so that only one batch is in memory at a time.

    Raises:
        SourceError: it is not a readable file of its kind.
    """
    if path.suffix == SUFFIX:
        return ArrowFile(path)
    try:
        # Otherwise the columns of a whole row group, images included, are in memory at once.
        opened = path.open("rb") if isinstance(path, RemotePath) else path
        return pyarrow.parquet.ParquetFile(opened, buffer_size=READ_BUFFER, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise SourceError(f"{path} is not a readable Parquet file: {error}") from error


def read_records(file: Any, shard: Shard, columns: list[str], place: str) -> Iterator[Record | BrokenRecord]:
    """Yield the rows of a shard as records; if the file is damaged, its unreadable rest is one broken record.

    Args:
        file: see `open_parquet`.
        shard: a shard of the file.
        columns: the columns to read.
        place: display name of a row, with `{}` for its index.
    """
    number = 0
    try:
        for row in read_rows(file, shard, columns):
            where = place.format(shard.first + number)
            if isinstance(row, UnicodeDecodeError):
                yield BrokenRecord(number, "broken_text", f"{where} is not UTF-8")
            else:
                yield Record(number, row, where)
            number += 1
    except (pyarrow.ArrowException, OSError) as error:
        detail = f"{shard.path}: row group {shard.group} cannot be read from its row {shard.start + number} on: {error}"
        yield BrokenRecord(number, "broken_parquet", detail)


def read_rows(file: Any, shard: Shard, columns: list[str]) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """Yield the shard's rows; earlier rows of the row group are read and skipped."""
    at = 0
    # Threads would read ahead, beyond the current batch.
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
        # The whole batch is converted before anything is yielded, so it can be retried row by row to find the bad row.
        if batch.num_rows == 1:
            yield error
            return
        for row in range(batch.num_rows):
            yield from _values(batch.slice(row, 1))


def stored_bytes(found: object) -> bytes | None:
    """The encoded image in a cell of a Parquet file, which is bytes or `{"bytes", "path"}`, or a list of one of
    these; None if there is none."""
    if isinstance(found, list):
        found = next(iter(listed(found)), None)
    content = found.get("bytes") if isinstance(found, Mapping) else found
    return content if isinstance(content, bytes) else None
