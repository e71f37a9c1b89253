"""Sources of records in any format, split into shards that any process can read independently, record by record.

A record holds what its file holds: plain values, and where an image is stored. `aligngpt.data.records` interprets it as
a pair or a conversation.
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
    """The fields of a row that are read; if `id` is None, the row's index is its id."""

    caption: str
    image: str
    id: str | None

    def all(self) -> list[str]:
        """The distinct names."""
        return list(dict.fromkeys(name for name in (self.caption, self.image, self.id) if name is not None))


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a source that can be read independently. Picklable and small.

    Attributes:
        index: 0…, in an order that depends on the data alone.
        name: display name, such as `captions.jsonl[10000:20000]` or `00012.tar`.
        records: number of records; None if it is unknown before reading.
        path: the file it is in; None for a Hugging Face data set.
        start: where it begins: a byte of the file, or a row of the row group or the data set.
        stop: where it ends, exclusive.
        first: index in the source of its first record.
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
    """A record as read from a file.

    Attributes:
        number: index in its shard, from 0.
        value: a JSON value, the fields of a row by name, or the members of a tar file that belong together.
        place: display name, such as `row 3 of captions.csv`.
        columns: which fields of a row hold the caption, the image and the id; None if the format has no columns.
        root: the folder that its image is in, if that is not the image root.
    """

    number: int
    value: Any
    place: str
    columns: ReadColumns | None = None
    root: Path | None = None


class BrokenRecord(NamedTuple):
    """A record that cannot be read.

    Attributes:
        number: index in its shard, from 0.
        kind: the short name of the reject, such as `broken_line`.
        detail: the full message.
    """

    number: int
    kind: str
    detail: str


class StoredAt(NamedTuple):
    """Where the encoded bytes of an image are in an archive.

    Attributes:
        file: index of the file in the archive.
        group: row group of a Parquet file; -1 in a tar file.
        start: first byte in the tar file, or row of the row group.
        length: number of bytes.
    """

    file: int
    group: int
    start: int
    length: int


class RecordSource(ABC):
    """Records in files of one format. Picklable: a worker gets the source and a shard to read.

    Attributes:
        kind: `json`, `csv`, `parquet`, `webdataset` or `dataset` (Hugging Face).
        base: folder that the source is in; None if it has none on this machine.
    """

    kind: str
    base: Path | None = None

    @abstractmethod
    def shards(self) -> Sequence[Shard]:
        """The shards, which together hold every record exactly once.

        The first call may read the whole source; its memory use does not grow with the number of records.

        Raises:
            SourceError: the source cannot be read at all, or has no records.
        """

    @abstractmethod
    def read(self, shard: Shard) -> Iterator[Record | BrokenRecord]:
        """Yield the records of one shard, in order; images are not opened.

        Raises:
            SourceError: the source can no longer be read.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes when the records do; it does not depend on the shard size.

        It covers the full content of JSON and CSV files, and the names, sizes and part of the content of other files
        (see `files_fingerprint`), but never their modification times: a copy has the same fingerprint.
        """

    def columns(self) -> set[ReadColumns]:
        """The columns found in its files, one entry per distinct combination; empty if the format has none."""
        return set()
