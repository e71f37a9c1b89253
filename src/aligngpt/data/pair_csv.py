"""Pairs in a CSV file that names pictures and their captions."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from aligngpt.data.pair_columns import ColumnNames, pair_of_row
from aligngpt.data.pair_ranges import Line, cut, decoded, read_lines, text_start
from aligngpt.data.pairs import Pair, PairSource, Shard, Unusable
from aligngpt.data.sources import SourceError
from aligngpt.files import sha256_of


class CsvPairs(PairSource):
    """A CSV file with a header, cut into ranges of bytes at the ends of rows.

    Args:
        path: the file: UTF-8, commas, double quotes.
        root: folder that paths of pictures start from.
        shard_size: rows a shard.
        names: which columns to read.

    Raises:
        SourceError: the file cannot be read, or its header lacks a column.
    """

    kind = "csv"

    def __init__(self, path: Path, root: Path, shard_size: int, names: ColumnNames) -> None:
        self.path = path
        self.root = root
        self.shard_size = shard_size
        header = next(self._with_header(), (None, 0, 0))[0]
        if not isinstance(header, list):
            raise SourceError(f"{path} has no header that can be read: {header or 'it is empty'}")
        self.header = [name.strip() for name in header]
        self.columns = names.found_in(self.header, str(path))
        self._shards: tuple[Shard, ...] = ()

    def shards(self) -> Sequence[Shard]:
        if not self._shards:
            rows = self._with_header()
            next(rows)
            self._shards = cut(self.path, ((start, stop) for _, start, stop in rows), self.shard_size)
        return self._shards

    def read(self, shard: Shard) -> Iterator[Pair | Unusable]:
        for record, (row, _, _) in enumerate(_rows(self.path, shard.start, shard.stop)):
            number = shard.first + record
            place = f"row {number} of {self.path.name}"
            if isinstance(row, csv.Error):
                yield Unusable(record, None, "broken_line", f"{place}: {row}")
            elif len(row) != len(self.header):
                found = f"expected {len(self.header)} fields, found {len(row)}; put texts with commas in quotes"
                yield Unusable(record, None, "broken_line", f"{place}: {found}")
            else:
                values = dict(zip(self.header, row, strict=True))
                yield pair_of_row(values, self.columns, record=record, number=number, root=self.root, place=place)

    def fingerprint(self) -> str:
        with self.path.open("rb") as file:
            return sha256_of(file)

    def _with_header(self) -> Iterator[tuple[list[str] | csv.Error, int, int]]:
        return _rows(self.path, text_start(self.path), None)


def _rows(path: Path, start: int, stop: int | None) -> Iterator[tuple[list[str] | csv.Error, int, int]]:
    """Each row that is not blank, or what is wrong with it, with its first byte and the byte after it.

    A row may have line breaks in quotes, so the bytes are known from the lines the reader has asked for.
    """
    asked = Line(b"", 0, start, start)

    def texts() -> Iterator[str]:
        nonlocal asked
        for asked in read_lines(path, start, stop):
            yield decoded(asked, path)

    reader = csv.reader(texts())
    while True:
        begin = asked.stop
        try:
            row: list[str] | csv.Error = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            row = error
        if row:
            yield row, begin, asked.stop
