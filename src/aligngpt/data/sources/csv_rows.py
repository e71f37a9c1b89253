"""The rows of a CSV file with their positions; a quote that is never closed breaks only its own line."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aligngpt.data.sources.byte_ranges import BrokenLine, read_lines, text_of
from aligngpt.data.sources.lines_ahead import LinesAhead

MAX_LINES = 1000
"""Maximum number of lines in a row. A quote that stays open for longer is a stray one."""

# A name with a suffix, or one word with a digit, slash, underscore or dash: typical of an image column, not of prose.
_NAME = re.compile(r"\S(?:.*\S)?\.[A-Za-z0-9]{2,5}|\S*[\d/_-]\S*")

_ESCAPED = re.compile(r'(?<!\\)\\"')
_BLANKS_AFTER = re.compile(r'" +(?=[,;\t\r\n]|$)')


@dataclass(frozen=True, slots=True)
class Row:
    """The fields of a row, or what is wrong with it; its first byte, and its end (exclusive)."""

    fields: list[str] | BrokenLine
    start: int
    stop: int


def names_picture(header: Sequence[str], image: str, delimiter: str = ",") -> Callable[[str], bool]:
    """Return a test for whether a line, read alone, is a row: of the header's width, with a name in the image column.

    The end of a multi-line text can look like a row (`with, a comma",0.png`) except for the quote that it closes, so a
    line with an odd number of quotes is not a row.
    """
    width, place = len(header), list(header).index(image)

    def is_row(line: str) -> bool:
        if line.count('"') % 2:
            return False
        try:
            fields = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            return False
        return len(fields) == width and _NAME.fullmatch(fields[place]) is not None

    return is_row


def read_rows(
    path: Path,
    start: int,
    stop: int | None = None,
    *,
    width: int | None = None,
    is_row: Callable[[str], bool],
    delimiter: str = ",",
) -> Iterator[Row]:
    """Yield the rows that begin between two bytes, the first of which must begin a row; blank lines are skipped.

    A row may have line breaks in quotes. If its quote is not closed, or closes only after lines that are rows
    themselves, its first line is a broken row and reading continues with the next line. The result does not depend on
    where reading begins, because lines after `stop` are inspected too.

    Args:
        path: the file.
        start: first byte of a row.
        stop: no row that begins here or later is read; the end of the file if None.
        width: expected number of fields per row, if known.
        is_row: whether a line, read alone, is a row (see `names_picture`).
        delimiter: the character between two fields.

    Raises:
        SourceError: the file cannot be read.
    """
    ahead = LinesAhead(read_lines(path, start))
    while (first := ahead.line(0)) is not None and (stop is None or first.start < stop):
        if isinstance(text := text_of(first), BrokenLine) and first.is_cut:
            fields: list[str] | BrokenLine = text
            count = 1
        else:
            fields, count = _row(ahead, width, is_row, delimiter)
        last = ahead.take(count)
        if fields:
            yield Row(fields, first.start, last.stop)


def _row(
    ahead: LinesAhead, width: int | None, is_row: Callable[[str], bool], delimiter: str
) -> tuple[list[str] | BrokenLine, int]:
    """The next row, and its number of lines."""
    asked = 0

    def texts() -> Iterator[str]:
        nonlocal asked
        while asked < MAX_LINES and (line := ahead.line(asked)) is not None and not line.is_cut:
            asked += 1
            yield ahead.text(asked - 1)

    try:
        # Strict: a closing quote must be followed by a delimiter or the end of the line. A stray quote is closed by the
        # next opening quote, which is followed by a word.
        fields = next(csv.reader(texts(), strict=True, delimiter=delimiter))
    except csv.Error:
        return _loosely(ahead, delimiter), 1
    if asked > 1:
        inner = [is_row(ahead.text(index)) for index in range(1, asked)]
        # A last line with its own stray quote (`p2,5",2.png`) seems to close the stray quote of the first line, which
        # would be a row without it; the first line of a multi-line text would not.
        if _without_quote(ahead.text(0), is_row) and _without_quote(ahead.text(asked - 1), is_row):
            inner[-1] = True
        if any(inner) if len(fields) != width else sum(inner) * 2 > len(inner):
            return BrokenLine(f"a quote that opens here is closed only {asked - 1} rows later"), 1
    return ahead.broken(asked) or fields, asked


def _without_quote(line: str, is_row: Callable[[str], bool]) -> bool:
    """Whether a line, read alone, has an odd number of quotes and would be a row without the first of them."""
    return line.count('"') % 2 == 1 and is_row(line.replace('"', "", 1))


def _loosely(ahead: LinesAhead, delimiter: str) -> list[str] | BrokenLine:
    """The next line as a row in which quotes may be escaped with a backslash, as Spark and MySQL write them, and blanks
    may follow a closing quote."""
    line = _BLANKS_AFTER.sub('"', _ESCAPED.sub('""', ahead.text(0)))
    try:
        fields = next(csv.reader([line], strict=True, delimiter=delimiter))
    except csv.Error as error:
        what = "a quote that opens here is not closed" if _is_open(line, delimiter) else "words follow a closing quote"
        return BrokenLine(f"{what} ({error}); double each quote inside a text")
    return ahead.broken(1) or fields


def _is_open(line: str, delimiter: str) -> bool:
    """Whether the last quote that opens in a line is not closed there."""
    lines = iter([line, ""])
    next(csv.reader(lines, delimiter=delimiter))
    return next(lines, None) is None
