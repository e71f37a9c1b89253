"""Files of consecutive records, split into byte ranges that can be read independently."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aligngpt.data.sources.base import Shard, SourceError
from aligngpt.data.sources.json_keys import DECODER

MAX_RECORD = 64 << 20
"""Longest record read, in bytes."""

CUT_LINE = 200
"""Number of bytes kept of a longer line."""

CHUNK = 1 << 20

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """A line and its position in the file: number from 1, first byte, and end (exclusive).

    If a line is too long to be read, `is_cut` is set and `content` is only its beginning.
    """

    content: bytes
    number: int
    start: int
    stop: int
    is_cut: bool = False


@dataclass(frozen=True)
class BrokenLine:
    """A record that cannot be read: a line, an array element or a row.

    Attributes:
        reason: what is wrong, and where.
        kind: short name of the reject: `broken_line` (invalid JSON or CSV), `broken_text` (not UTF-8, or too long), or
            that of a `BrokenRecord`.
        id: the record's own, if it was found.
    """

    reason: str
    kind: str = "broken_line"
    id: str | None = None


def text_start(path: Path) -> int:
    """The byte at which the text of a file begins: after the byte order mark, if there is one."""
    with path.open("rb") as file:
        return len(BOM) if file.read(len(BOM)) == BOM else 0


def read_lines(path: Path, start: int, stop: int | None = None) -> Iterator[Line]:
    """Yield the lines of a byte range, numbered from 1 within it.

    A line of more than `MAX_RECORD` bytes is truncated, and the rest of it is skipped.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            at, number = file.seek(start), 0
            while (stop is None or at < stop) and (content := file.readline(MAX_RECORD)):
                number += 1
                end = at + len(content)
                rest = _rest_of_line(file, content) if len(content) == MAX_RECORD else 0
                yield Line(content[:CUT_LINE] if rest else content, number, at, end + rest, is_cut=rest > 0)
                at = end + rest
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error


def _rest_of_line(file: BinaryIO, content: bytes) -> int:
    """Skip the rest of a line whose beginning was read; return the number of bytes skipped."""
    passed = 0
    while not content.endswith(b"\n") and (content := file.readline(CHUNK)):
        passed += len(content)
    return passed


def text_of(line: Line) -> str | BrokenLine:
    """The text of a line, or a `BrokenLine`."""
    if line.is_cut:
        return BrokenLine(f"the line at byte {line.start} is longer than {MAX_RECORD} bytes", "broken_text")
    try:
        return line.content.decode()
    except UnicodeDecodeError as error:
        return BrokenLine(f"the line at byte {line.start} is not UTF-8 at its byte {error.start}", "broken_text")


def json_of(line: Line) -> object:
    """The JSON value of a line, or a `BrokenLine`."""
    text = text_of(line)
    if isinstance(text, BrokenLine):
        return text
    try:
        # Without the line break, an error at the end is reported at the last column and not on a line of its own.
        return DECODER.decode(text.rstrip())
    except json.JSONDecodeError as error:
        return BrokenLine(f"{error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return BrokenLine(str(error))


def cut(path: Path, spans: Iterable[tuple[int, int]], shard_size: int) -> tuple[Shard, ...]:
    """Split a file's records into shards.

    Args:
        path: the file.
        spans: first byte and end (exclusive) of each record, in order.
        shard_size: records per shard; the last one may have fewer.

    Raises:
        SourceError: there are no records.
    """
    shards: list[Shard] = []
    begin = end = count = 0

    def close() -> None:
        first = len(shards) * shard_size
        name = f"{path.name}[{first}:{first + count}]"
        shards.append(Shard(len(shards), name, count, path=path, start=begin, stop=end, first=first))

    for start, stop in spans:
        if count == shard_size:
            close()
            count = 0
        if count == 0:
            begin = start
        end, count = stop, count + 1
    if count:
        close()
    if not shards:
        raise SourceError(f"{path} has no records")
    return tuple(shards)
