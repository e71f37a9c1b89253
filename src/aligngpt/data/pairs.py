"""Image-caption pairs of any number: cut into shards that any process can read alone, one pair at a time."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aligngpt.data.pictures import Picture


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture and what is said about it.

    Attributes:
        record: number in its shard, from 0.
        id: the record's own, or its number in the source; two pairs may have the same.
        caption: as given, outer white space stripped.
        picture: where the picture is; it has not been looked at.
    """

    record: int
    id: str
    caption: str
    picture: Picture


@dataclass(frozen=True, slots=True)
class Unusable:
    """A record that is no pair, and why.

    Attributes:
        record: number in its shard, from 0.
        id: the record's own, where it was found.
        reason: short name of why, as in `RecordError` and `ImageError`.
        detail: the whole story.
    """

    record: int
    id: str | None
    reason: str
    detail: str


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


class PairSource(ABC):
    """Pairs in some kind of file. Picklable: a worker gets the source and a shard, and reads.

    Attributes:
        kind: `llava` (JSON or JSON lines), `parquet`, `webdataset`, `dataset` (Hugging Face) or `csv` (a table, as CSV
            or JSON lines, of the names of pictures).
        place: what people call the source: the path, pattern or name it was opened with.
    """

    kind: str
    place: str = "the source of pairs"

    @abstractmethod
    def shards(self) -> Sequence[Shard]:
        """The shards, which together hold every record once.

        The first call may read through the source; its memory does not grow with the number of records.

        Raises:
            SourceError: the source cannot be read at all, or holds no record.
        """

    @abstractmethod
    def read(self, shard: Shard) -> Iterator[Pair | Unusable]:
        """The records of one shard, in order; pictures are not opened.

        Raises:
            SourceError: the source cannot be read any more.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A hexadecimal number that changes when the records do; cutting into other shards does not change it.

        It covers all that JSON and CSV files hold, and of files of other kinds their names, sizes and a part of their
        content (see `files_fingerprint`), but never their times: a copy is the same source. How the records are read
        is in `settings`.
        """

    def settings(self) -> dict[str, str | None]:
        """How the records are read: what `open_pairs` was told or found out that decides which pairs they become.

        The keys are those of `read_with`, as far as they matter to this kind of source.
        """
        return {}

    def remark(self) -> str | None:
        """What should be known before the pairs are scored, where the records look like something else than pairs."""
        return None


def read_with(
    *, caption: str | None, id: str | None, image: str | None = None, root: Path | None = None, base: Path | None = None
) -> dict[str, str | None]:
    """What `PairSource.settings` returns.

    Args:
        caption: name of the field with the caption.
        id: name of the field with the id; None where a record's number is its id.
        image: name of the field with the picture.
        root: folder that paths of pictures start from; None where pictures are in the source.
        base: folder of the source; None where it has none on this machine.

    Returns:
        `caption_column`, `image_column` and `id_column`, and of the root two things, either of which tells that it is
        the same: `image_root`, the path from the source to it, which stays when both are moved or copied together, and
        `image_root_absolute`, which stays when the source alone is moved.
    """
    found = {"caption_column": caption, "image_column": image, "id_column": id}
    if root is not None:
        found["image_root"] = Path(os.path.relpath(root, base)).as_posix()
        found["image_root_absolute"] = os.path.abspath(root)
    return found


def open_pairs(
    source: str | Path,
    *,
    image_root: Path | None = None,
    shard_size: int = 10_000,
    caption_column: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
) -> PairSource:
    """The pairs at `source`; what kind of source it is follows from what is there.

    Args:
        source: a JSON, JSON lines, CSV, Parquet or tar file; a folder of Parquet or tar files, or of pictures with a
            table of captions; a pattern, as `{00000..00041}.tar` or `*.parquet`; a folder written by
            `Dataset.save_to_disk`; or the name of a data set on the Hugging Face hub.
        image_root: folder that paths of pictures start from; the source's own folder when None.
        shard_size: at most so many records a shard, where a source can be cut (a tar cannot).
        caption_column: name of the field with the caption; `caption`, `text` or `TEXT` when None.
        image_column: name of the field with the picture; `image`, `file_name` or `path` when None.
        id_column: name of the field with the id; `id`, `uid` or `key` when None.

    Raises:
        SourceError: nothing is there, or nothing of these kinds.
        ValueError: `shard_size` is not positive.
    """
    # The sources are made of what this file defines.
    from aligngpt.data.pair_columns import ColumnNames
    from aligngpt.data.pair_sources import choose_source

    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, found {shard_size}")
    names = ColumnNames(caption=caption_column, image=image_column, id=id_column)
    found = choose_source(source, image_root=image_root, shard_size=shard_size, names=names)
    found.place = str(source)
    return found
