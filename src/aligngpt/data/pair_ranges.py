"""Files of records in a row, cut into ranges of bytes that are read without what stands before them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aligngpt.data.pairs import Shard
from aligngpt.data.source_error import SourceError

MAX_RECORD = 64 << 20
"""Longest record read, in bytes. A longer one is a file that is not what its name says."""

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """A line with its place in the file: number from 1, first byte, and the byte after it."""

    content: bytes
    number: int
    start: int
    stop: int


def text_start(path: Path) -> int:
    """Where the text of a file begins: behind a byte order mark, if there is one."""
    with path.open("rb") as file:
        return len(BOM) if file.read(len(BOM)) == BOM else 0


def read_lines(path: Path, start: int, stop: int | None = None) -> Iterator[Line]:
    """The lines of a range of bytes, numbered from 1 within it.

    Raises:
        SourceError: the file cannot be read, or a line has no end.
    """
    try:
        with path.open("rb") as file:
            at, number = file.seek(start), 0
            while (stop is None or at < stop) and (content := file.readline(MAX_RECORD)):
                if len(content) == MAX_RECORD:
                    raise SourceError(f"{path}: the line at byte {at} is longer than {MAX_RECORD} bytes")
                number += 1
                yield Line(content, number, at, at + len(content))
                at += len(content)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error


def decoded(line: Line, path: Path) -> str:
    """The text of a line.

    Raises:
        SourceError: it is not UTF-8.
    """
    try:
        return line.content.decode()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 in line {line.number}; save it as UTF-8") from error


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
