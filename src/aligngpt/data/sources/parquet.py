"""Parquet files and saved data sets, with image paths or the images themselves."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow

from aligngpt.data.sources.base import BrokenRecord, ReadColumns, Record, RecordSource, Shard, SourceError, StoredAt
from aligngpt.data.sources.fields import ColumnNames, check_once
from aligngpt.data.sources.fingerprints import files_fingerprint
from aligngpt.data.sources.parquet_rows import open_parquet, read_records


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
                check_once(columns, file.schema_arrow.names, str(path))
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
                found = self.names.found_in(file.schema_arrow.names, str(path))
                check_once(found.all(), file.schema_arrow.names, str(path))
                self._columns.add(found)
                groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            begin = 0
            for group, rows in enumerate(groups):
                for start in range(0, rows, self.shard_size):
                    stop = min(start + self.shard_size, rows)
                    whole = f"{name}[{begin + start}:{begin + stop}]"
                    yield Shard(index, whole, stop - start, path=path, start=start, stop=stop, first=first, group=group)
                    index, first = index + 1, first + stop - start
                begin += rows
