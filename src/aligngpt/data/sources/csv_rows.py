"""The rows of a CSV file with their places, where a quote that is never closed costs its own line and no other."""

import csv
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aligngpt.data.sources.byte_ranges import BrokenLine, Line, read_lines, text_of

MAX_LINES = 1000
"""Lines of the longest row. A quote that is open for longer is a stray one."""

# A name with a suffix, or one word with a digit or a stroke: what stands in a column of pictures, but not in prose.
_NAME = re.compile(r"\S(?:.*\S)?\.[A-Za-z0-9]{2,5}|\S*[\d/_-]\S*")


@dataclass(frozen=True, slots=True)
class Row:
    """The fields of a row, or what is wrong with it; its first byte, and the byte after it."""

    fields: list[str] | BrokenLine
    start: int
    stop: int


def names_picture(header: Sequence[str], image: str) -> Callable[[str], bool]:
    """A test whether a line, read alone, is a row: of the header's width, with a name where the picture is.

    The end of a text of several lines can look like one (`with, a comma",0.png`), but for the quote that it closes: a
    line with an odd number of quotes is no row.
    """
    width, place = len(header), list(header).index(image)

    def is_row(line: str) -> bool:
        if line.count('"') % 2:
            return False
        try:
            fields = next(csv.reader([line]), [])
        except csv.Error:
            return False
        return len(fields) == width and _NAME.fullmatch(fields[place]) is not None

    return is_row


def read_rows(
    path: Path, start: int, stop: int | None = None, *, width: int | None = None, is_row: Callable[[str], bool]
) -> Iterator[Row]:
    """The rows that begin between two bytes, the first of which begins a row; blank lines are passed over.

    A row may have line breaks in quotes. One whose quote is not closed, or closes only after lines that are rows
    themselves, is broken in its first line, and reading goes on at the next. That is the same wherever reading begins,
    since lines behind `stop` are looked at too.

    Args:
        path: the file.
        start: first byte of a row.
        stop: no row that begins here or later is read; the file's end when None.
        width: fields a row should have, where that is known.
        is_row: whether a line, read alone, is a row (see `names_picture`).

    Raises:
        SourceError: the file cannot be read.
    """
    ahead = _Ahead(read_lines(path, start))
    while (first := ahead.line(0)) is not None and (stop is None or first.start < stop):
        if isinstance(text := text_of(first), BrokenLine) and first.is_cut:
            fields: list[str] | BrokenLine = text
            count = 1
        else:
            fields, count = _row(ahead, width, is_row)
        last = ahead.take(count)
        if fields:
            yield Row(fields, first.start, last.stop)


class _Ahead:
    """Lines that can be looked at before they are taken."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._seen: deque[Line] = deque()

    def line(self, index: int) -> Line | None:
        """The line after so many others; None behind the end."""
        while len(self._seen) <= index:
            if (line := next(self._lines, None)) is None:
                return None
            self._seen.append(line)
        return self._seen[index]

    def text(self, index: int) -> str:
        """A line that has been looked at, bytes that are no text kept as half characters."""
        return self._seen[index].content.decode(errors="surrogateescape")

    def take(self, count: int) -> Line:
        """Pass over lines; returns the last of them."""
        for _ in range(count):
            last = self._seen.popleft()
        return last

    def broken(self, count: int) -> BrokenLine | None:
        """What is wrong with the text of the next lines."""
        texts = (text_of(line) for line, _ in zip(self._seen, range(count), strict=False))
        return next((text for text in texts if isinstance(text, BrokenLine)), None)


def _row(ahead: _Ahead, width: int | None, is_row: Callable[[str], bool]) -> tuple[list[str] | BrokenLine, int]:
    """The next row, and how many lines it has."""
    asked = 0

    def texts() -> Iterator[str]:
        nonlocal asked
        while asked < MAX_LINES and (line := ahead.line(asked)) is not None and not line.is_cut:
            asked += 1
            yield ahead.text(asked - 1)

    try:
        # Strict: behind a closing quote a comma or the line's end must follow. A quote that was open by mistake is
        # closed by the next one that opens, which a word follows.
        fields = next(csv.reader(texts(), strict=True))
    except csv.Error as error:
        return _loosely(ahead, error), 1
    if asked > 1:
        inner = [is_row(ahead.text(index)) for index in range(1, asked)]
        # A last line with a stray quote of its own (`p2,5",2.png`) seems to close the first line's, which is a row
        # itself but for its stray quote; the beginning of a text of several lines is none.
        if _without_quote(ahead.text(0), is_row) and _without_quote(ahead.text(asked - 1), is_row):
            inner[-1] = True
        if any(inner) if len(fields) != width else sum(inner) * 2 > len(inner):
            return BrokenLine(f"a quote that opens here is closed only {asked - 1} rows later"), 1
    return ahead.broken(asked) or fields, asked


def _without_quote(line: str, is_row: Callable[[str], bool]) -> bool:
    """Whether a line with an odd number of quotes, read alone, would be a row without one of them."""
    return line.count('"') % 2 == 1 and is_row(line.replace('"', "", 1))


def _loosely(ahead: _Ahead, error: csv.Error) -> list[str] | BrokenLine:
    """The next line as a row, where words may follow a closing quote, but the quote must close."""
    is_open = False

    def texts() -> Iterator[str]:
        nonlocal is_open
        yield ahead.text(0)
        is_open = True

    try:
        fields = next(csv.reader(texts()))
    except csv.Error as worse:
        return BrokenLine(str(worse))
    if is_open:
        return BrokenLine(f"a quote that opens here is not closed ({error}); write quotes inside a text twice")
    return ahead.broken(1) or fields
