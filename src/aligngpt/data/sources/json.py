"""Files of JSON records: one array, or one record per line, distinguished by their content."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from aligngpt.data.sources.base import BrokenRecord, ReadColumns, Record, RecordSource, Shard, SourceError
from aligngpt.data.sources.byte_ranges import BOM, BrokenLine, cut, json_of, read_lines, text_start
from aligngpt.data.sources.json_array import read_array, read_array_range
from aligngpt.data.sources.json_objects import HEAD
from aligngpt.data.sources.remote import content_hash
from aligngpt.data.sources.text_files import check_kind, check_lines

LOOK_AT = 100
"""Number of leading records searched for the first JSON object of a file."""


class JsonSource(RecordSource):
    """A file of JSON records, split into byte ranges.

    Args:
        path: the file.
        shard_size: records per shard.
        is_array: whether it is one array, rather than one record per line.
        columns: the fields to read if it is a table; None if the format is detected for each record.
    """

    kind = "json"

    def __init__(self, path: Path, shard_size: int, *, is_array: bool, columns: ReadColumns | None = None) -> None:
        self.path, self.base = path, path.parent
        self.shard_size = shard_size
        self.is_array = is_array
        self._columns = columns
        self._shards: tuple[Shard, ...] = ()

    def shards(self) -> Sequence[Shard]:
        if not self._shards:
            self._shards = cut(self.path, self._spans(), self.shard_size)
        return self._shards

    def read(self, shard: Shard) -> Iterator[Record | BrokenRecord]:
        for number, value in enumerate(self._values(shard)):
            place = f"record {shard.first + number} of {self.path.name}"
            if isinstance(value, BrokenLine):
                where = f"record {shard.first + number} of {self.path}"
                yield BrokenRecord(number, value.kind, f"{where}: {value.reason}")
            else:
                yield Record(number, value, place, self._columns)

    def fingerprint(self) -> str:
        return content_hash(self.path)

    def columns(self) -> set[ReadColumns]:
        return set() if self._columns is None else {self._columns}

    def _spans(self) -> Iterator[tuple[int, int]]:
        if self.is_array:
            for element in read_array(self.path):
                yield element.start, element.stop
            return
        check_lines(self.path)
        for line in read_lines(self.path, text_start(self.path)):
            if line.content.strip():
                yield line.start, line.stop

    def _values(self, shard: Shard) -> Iterator[object]:
        if self.is_array:
            for element in read_array_range(self.path, shard.start, shard.stop):
                yield element.value
            return
        for line in read_lines(self.path, shard.start, shard.stop):
            if line.content.strip():
                yield json_of(line)


def first_object(path: Path, *, is_array: bool) -> dict[str, object] | None:
    """The first JSON object among the first records of a file; None if there is none.

    Raises:
        SourceError: the file cannot be read.
    """
    return next((value for value in islice(_good_values(path, is_array), LOOK_AT) if isinstance(value, dict)), None)


def _good_values(path: Path, is_array: bool) -> Iterator[object]:
    if is_array:
        yield from (element.value for element in read_array(path))
        return
    check_lines(path)
    for line in read_lines(path, text_start(path)):
        if line.content.strip() and not isinstance(value := json_of(line), BrokenLine):
            yield value


def read_records(path: Path) -> Iterator[tuple[int, object]]:
    """Yield the records of a file, numbered from 0, with one in memory at a time.

    An invalid line of JSON lines, and a record that is not UTF-8, come as a `BrokenLine`; a broken array raises where
    it is broken.

    Raises:
        SourceError: the file cannot be read, is empty, is compressed, is not UTF-8, or is neither an array nor JSON
            lines.
    """
    try:
        if is_array(path):
            yield from ((index, element.value) for index, element in enumerate(read_array(path)))
        else:
            yield from _read_lines(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error


def is_array(path: Path) -> bool:
    """Whether a file of JSON records is one array.

    Raises:
        SourceError: it is empty, or of another kind.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD).removeprefix(BOM)
        check_kind(path, head)
        while head and not (start := head.lstrip()):
            head = file.read(HEAD)
    if not head:
        raise SourceError(f"{path} is empty")
    return start.startswith(b"[")


def _read_lines(path: Path) -> Iterator[tuple[int, object]]:
    check_lines(path)
    index = 0
    for line in read_lines(path, text_start(path)):
        if not line.content.strip():
            continue
        record = json_of(line)
        if isinstance(record, BrokenLine):
            if index == 0 and record.kind == "broken_line" and not line.content.lstrip().startswith(b"{"):
                raise SourceError(f"{path} is neither a JSON array nor JSON lines of records")
            record = BrokenLine(f"line {line.number}: {record.reason}", record.kind)
        yield index, record
        index += 1
