"""Rows of files with a header and separated fields (CSV, TSV) that name images."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from aligngpt.data.sources.base import BrokenRecord, ReadColumns, Record, RecordSource, Shard, SourceError
from aligngpt.data.sources.byte_ranges import BrokenLine, cut, text_start
from aligngpt.data.sources.csv_rows import Row, names_picture, read_rows
from aligngpt.data.sources.fields import IMAGE_COLUMNS, NUMBERS, ColumnNames, check_once, first_of
from aligngpt.data.sources.remote import content_hash
from aligngpt.data.sources.text_files import check_encoding

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon"}
"""The characters between fields that are recognized, with their names."""


QUESTION_COLUMNS = frozenset(
    {
        *("id", "uid", "key", "question_id", "image", "images", "conversations", "messages", "texts"),
        *("question", "answer", "answers", "label", "accepted_answers", "question_type", "caption", "text"),
        *("system", "system_prompt", "instruction", "input", "output", "history", "query", "response"),
        *("prompt", "completion", "context", "hint", "choices", "options", "tools", "functions"),
        *("chosen", "rejected", "rejected_response", "rejected_messages", "video", "videos", "audio", "audios"),
        *NUMBERS,
    }
)
"""The columns of a table of questions that its records are read from, or rejected for."""


class CsvSource(RecordSource):
    """A CSV file with a header, split into byte ranges at row boundaries.

    Attributes:
        header: the names of the columns.
        delimiter: the one of `DELIMITERS` with which the header has the columns to read.

    Args:
        path: the file: UTF-8, double quotes.
        shard_size: rows per shard.
        names: which columns to read. A table of questions and answers has no caption column; its rows are read as
            JSON records are.

    Raises:
        SourceError: the file cannot be read, or its header lacks a column.
    """

    kind = "csv"

    def __init__(self, path: Path, shard_size: int, names: ColumnNames) -> None:
        self.path, self.base = path, path.parent
        self.shard_size = shard_size
        self.delimiter = _delimiter(path, names)
        header, self._body = _header(path, self.delimiter)
        self.header = header
        check_encoding(path, self._body, above=1)
        self._columns = None if _asks(header, names) else names.found_in(header, str(path))
        check_once(self._read(), header, str(path))
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
                between = DELIMITERS[self.delimiter]
                found = (
                    f"expected {len(self.header)} fields, found {len(row.fields)}; quote texts that contain {between}s"
                )
                yield BrokenRecord(number, "broken_line", f"{place}, at byte {row.start}: {found}")
            else:
                values = dict(zip(self.header, row.fields, strict=True))
                yield Record(number, values, place, self._columns)

    def _read(self) -> tuple[str, ...]:
        """The columns that may be read, in the order of the header for a table of questions."""
        if self._columns is None:
            return tuple(name for name in self.header if name in QUESTION_COLUMNS)
        return (*self._columns.all(), *NUMBERS)

    def _rows(self, start: int, stop: int | None) -> Iterator[Row]:
        image = first_of(IMAGE_COLUMNS, self.header) if self._columns is None else self._columns.image
        is_row = names_picture(self.header, image or self.header[0], self.delimiter)
        return read_rows(self.path, start, stop, width=len(self.header), is_row=is_row, delimiter=self.delimiter)

    def fingerprint(self) -> str:
        return content_hash(self.path)

    def columns(self) -> set[ReadColumns]:
        return set() if self._columns is None else {self._columns}


def _asks(header: Sequence[str], names: ColumnNames) -> bool:
    """Whether a table has questions and answers rather than captions."""
    return not names.given and "question" in header and any(name in header for name in ("answer", "answers"))


def _header(path: Path, delimiter: str) -> tuple[list[str], int]:
    """The names of the columns, and the byte at which the first row begins."""
    first = next(read_rows(path, text_start(path), is_row=lambda line: False, delimiter=delimiter), None)
    if first is None:
        raise SourceError(f"{path} has no header: it is empty")
    if isinstance(first.fields, BrokenLine):
        raise SourceError(f"{path} has no readable header: {first.fields.reason}; save it as UTF-8, with commas")
    return [name.strip() for name in first.fields], first.stop


def _delimiter(path: Path, names: ColumnNames) -> str:
    """The character with which a file's header has the columns to read; else the one that gives the most columns.

    Raises:
        SourceError: the header has these columns with several of the characters, or is broken with all of them.
    """
    headers: dict[str, list[str]] = {}
    broken: SourceError | None = None
    for delimiter in DELIMITERS:
        try:
            headers[delimiter] = _header(path, delimiter)[0]
        except SourceError as error:
            # A quoted name may seem broken with the wrong delimiter.
            broken = broken or error
    if broken is not None and not headers:
        raise broken
    fitting = [delimiter for delimiter, header in headers.items() if _fits(header, names)]
    if len(fitting) > 1:
        found = " or ".join(DELIMITERS[delimiter] for delimiter in fitting)
        raise SourceError(
            f"{path} may be separated by {found}: its header has the columns to read with each of them; remove the "
            "columns that are not needed"
        )
    return fitting[0] if fitting else max(headers, key=lambda delimiter: len(headers[delimiter]))


def _fits(header: Sequence[str], names: ColumnNames) -> bool:
    if _asks(header, names):
        return True
    try:
        names.found_in(header, "")
    except SourceError:
        return False
    return True
