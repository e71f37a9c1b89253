"""Records of any number in files of any format: cut into shards that any process can read alone, one at a time.

What a record holds is as its file has it: plain values, and where a picture is stored. What it means, a pair or a
conversation, is for `aligngpt.data.records` to say.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aligngpt.errors import AlignGPTError


class SourceError(AlignGPTError):
    """A source of records cannot be read at all."""


@dataclass(frozen=True, slots=True)
class ReadColumns:
    """The fields of a row that are read; without `id`, a row's number is its id."""

    caption: str
    image: str
    id: str | None

    def all(self) -> list[str]:
        """The names, each once."""
        return list(dict.fromkeys(name for name in (self.caption, self.image, self.id) if name is not None))


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a source that can be read without the others. Picklable and small.

    Attributes:
        index: 0… in an order that depends on the data alone.
        name: for people, such as `captions.jsonl[10000:20000]` or `00012.tar`.
        records: how many; None where only reading tells.
        path: the file it is in, for sources of several files.
        start: where it begins: a byte of the file, or a row (of the row group, of the data set).
        stop: where it ends, exclusive.
        first: number in the source of its first record.
        group: row group of a Parquet file.
    """

    index: int
    name: str
    records: int | None
    path: Path | None = None
    start: int = 0
    stop: int = 0
    first: int = 0
    group: int = 0


class Record(NamedTuple):
    """What a file holds in one place.

    Attributes:
        number: in its shard, from 0.
        value: a JSON value, the fields of a row by name, or the members of a tar file that belong together.
        place: what people call it, such as `row 3 of captions.csv`.
        columns: which fields of a row have the caption, the picture and the id; None where the format has no columns.
        root: the folder that its picture is in, where that is not the image root.
    """

    number: int
    value: Any
    place: str
    columns: ReadColumns | None = None
    root: Path | None = None


class BrokenRecord(NamedTuple):
    """A record that cannot be read.

    Attributes:
        number: in its shard, from 0.
        kind: the short name of the reject, such as `broken_line`.
        detail: the whole story.
    """

    number: int
    kind: str
    detail: str


class StoredAt(NamedTuple):
    """Where the encoded bytes of a picture are in an archive.

    Attributes:
        file: number of the archive's file.
        group: row group of a Parquet file; -1 in a tar file.
        start: first byte in the tar file, or row of the row group.
        length: how many bytes.
    """

    file: int
    group: int
    start: int
    length: int


class RecordSource(ABC):
    """Records in files of one format. Picklable: a worker gets the source and a shard, and reads.

    Attributes:
        kind: `json`, `csv`, `parquet`, `webdataset` or `dataset` (Hugging Face).
        base: folder that the source is in; None where it has none on this machine.
    """

    kind: str
    base: Path | None = None

    @abstractmethod
    def shards(self) -> Sequence[Shard]:
        """The shards, which together hold every record once.

        The first call may read through the source; its memory does not grow with the number of records.

        Raises:
            SourceError: the source cannot be read at all, or holds no record.
        """

    @abstractmethod
    def read(self, shard: Shard) -> Iterator[Record | BrokenRecord]:
        """The records of one shard, in order; pictures are not opened.

        Raises:
            SourceError: the source cannot be read any more.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes when the records do; cutting into other shards does not change it.

        It covers all that JSON and CSV files hold, and of files of other kinds their names, sizes and a part of their
        content (see `files_fingerprint`), but never their times: a copy is the same source.
        """

    def columns(self) -> set[ReadColumns]:
        """The columns that were found in its files, which may differ; empty where the format has none."""
        return set()
