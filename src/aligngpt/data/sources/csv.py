"""Rows of CSV files that name images."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from aligngpt.data.sources.base import BrokenRecord, ReadColumns, Record, RecordSource, Shard, SourceError
from aligngpt.data.sources.byte_ranges import BrokenLine, cut, text_start
from aligngpt.data.sources.csv_rows import Row, names_picture, read_rows
from aligngpt.data.sources.fields import ColumnNames
from aligngpt.data.sources.text_files import check_encoding
from aligngpt.files import sha256_of


class CsvSource(RecordSource):
    """A CSV file with a header, split into byte ranges at row boundaries.

    Args:
        path: the file: UTF-8, commas, double quotes.
        shard_size: rows per shard.
        names: which columns to read.

    Raises:
        SourceError: the file cannot be read, or its header lacks a column.
    """

    kind = "csv"

    def __init__(self, path: Path, shard_size: int, names: ColumnNames) -> None:
        self.path, self.base = path, path.parent
        self.shard_size = shard_size
        header = next(read_rows(path, text_start(path), is_row=lambda line: False), None)
        if header is None:
            raise SourceError(f"{path} has no header: it is empty")
        fields = header.fields
        if isinstance(fields, BrokenLine):
            raise SourceError(f"{path} has no readable header: {fields.reason}; save it as UTF-8, with commas")
        self.header = [name.strip() for name in fields]
        self._body = header.stop
        check_encoding(path, self._body, above=1)
        self._columns = names.found_in(self.header, str(path))
        self._shards: tuple[Shard, ...] = ()

    def shards(self) -> Sequence[Shard]:
        if not self._shards:
            rows = self._rows(self._body, None)
            self._shards = cut(self.path, ((row.start, row.stop) for row in rows), self.shard_size)
        return self._shards

    def read(self, shard: Shard) -> Iterator[Record | BrokenRecord]:
        for number, row in enumerate(self._rows(shard.start, shard.stop)):
            place = f"row {shard.first + number} of {self.path.name}"
            if isinstance(row.fields, BrokenLine):
                where = f"{place}, at byte {row.start}"
                yield BrokenRecord(number, row.fields.kind, f"{where}: {row.fields.reason}")
            elif len(row.fields) != len(self.header):
                found = f"expected {len(self.header)} fields, found {len(row.fields)}; quote texts that contain commas"
                yield BrokenRecord(number, "broken_line", f"{place}, at byte {row.start}: {found}")
            else:
                values = dict(zip(self.header, row.fields, strict=True))
                yield Record(number, values, place, self._columns)

    def _rows(self, start: int, stop: int | None) -> Iterator[Row]:
        is_row = names_picture(self.header, self._columns.image)
        return read_rows(self.path, start, stop, width=len(self.header), is_row=is_row)

    def fingerprint(self) -> str:
        with self.path.open("rb") as file:
            return sha256_of(file)

    def columns(self) -> set[ReadColumns]:
        return {self._columns}
