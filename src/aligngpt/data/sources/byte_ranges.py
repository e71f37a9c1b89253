"""Files of records in a row, cut into ranges of bytes that are read without what stands before them."""

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
"""How much of a longer line is kept."""

CHUNK = 1 << 20

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """A line with its place in the file: number from 1, first byte, and the byte after it.

    A line that is too long to be read `is_cut`: `content` is only its beginning.
    """

    content: bytes
    number: int
    start: int
    stop: int
    is_cut: bool = False


@dataclass(frozen=True)
class BrokenLine:
    """A line or an element of a file of records that cannot be read.

    Attributes:
        reason: where it breaks.
        kind: the short name of the reject: `broken_line` (no JSON, no row) or `broken_text` (no UTF-8, or too long).
    """

    reason: str
    kind: str = "broken_line"


def text_start(path: Path) -> int:
    """Where the text of a file begins: behind a byte order mark, if there is one."""
    with path.open("rb") as file:
        return len(BOM) if file.read(len(BOM)) == BOM else 0


def read_lines(path: Path, start: int, stop: int | None = None) -> Iterator[Line]:
    """The lines of a range of bytes, numbered from 1 within it.

    A line of more than `MAX_RECORD` bytes comes cut; the rest of it is passed over.

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
    """Read on to the end of a line of which only the beginning was read; returns how many bytes that was."""
    passed = 0
    while not content.endswith(b"\n") and (content := file.readline(CHUNK)):
        passed += len(content)
    return passed


def text_of(line: Line) -> str | BrokenLine:
    """The text of a line, or what is wrong with it."""
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
        # An error at the line's end is at its last column, not in a line of its own.
        return DECODER.decode(text.rstrip())
    except json.JSONDecodeError as error:
        return BrokenLine(f"{error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return BrokenLine(str(error))


def cut(path: Path, spans: Iterable[tuple[int, int]], shard_size: int) -> tuple[Shard, ...]:
    """Shards of a file's records.

    Args:
        path: the file.
        spans: first byte of each record and the byte after it, in order.
        shard_size: records a shard; the last one may have fewer.

    Raises:
        SourceError: there is no record.
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
        raise SourceError(f"{path} holds no record")
    return tuple(shards)
