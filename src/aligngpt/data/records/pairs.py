"""Image-caption pairs: what the records of a source come to where each is a picture and what is said about it."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from aligngpt.data.images.opening import ImageError, resolve_image
from aligngpt.data.images.reference import Picture
from aligngpt.data.records.captions import checked_caption
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.members import caption_of_members, picture_of_members, values_of_members
from aligngpt.data.records.sample import own_id, parse_record
from aligngpt.data.sources.base import BrokenRecord, Record, RecordSource, Shard, SourceError
from aligngpt.data.sources.fields import ColumnNames
from aligngpt.data.sources.finding import find_records
from aligngpt.data.sources.tar import TarSample

RECORDS_LOOKED_AT = 100
"""First records, by which `PairSource.remark` judges what a file holds."""


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


class PairSource(ABC):
    """The pairs of a source of records. Picklable: a worker gets the source and a shard, and reads.

    Args:
        records: the source.
        root: folder that paths of pictures start from.
        place: what people call the source: the path, pattern or name it was opened with.
    """

    def __init__(self, records: RecordSource, root: Path, place: str) -> None:
        self.records, self.root, self.place = records, root, place

    @property
    def kind(self) -> str:
        """`llava` (JSON or JSON lines), `parquet`, `webdataset`, `dataset` (Hugging Face) or `csv` (a table, as CSV or
        JSON lines, of the names of pictures)."""
        return self.records.kind

    def shards(self) -> Sequence[Shard]:
        """See `RecordSource.shards`."""
        return self.records.shards()

    def read(self, shard: Shard) -> Iterator[Pair | Unusable]:
        """The records of one shard, in order; pictures are not opened.

        Raises:
            SourceError: the source cannot be read any more.
        """
        for record in self.records.read(shard):
            if isinstance(record, BrokenRecord):
                yield Unusable(record.number, None, record.kind, record.detail)
            else:
                yield self._pair(record, shard.first + record.number)

    def fingerprint(self) -> str:
        """See `RecordSource.fingerprint`. How the records are read is in `settings`."""
        return self.records.fingerprint()

    @abstractmethod
    def settings(self) -> dict[str, str | None]:
        """How the records are read: what `open_pairs` was told or found out that decides which pairs they become.

        The keys are those of `read_with`, as far as they matter to this kind of source.
        """

    def remark(self) -> str | None:
        """What a person should know of the records before they are scored, in a sentence; None without."""
        return None

    @abstractmethod
    def _pair(self, record: Record, number: int) -> Pair | Unusable:
        """What a record holds, given its number in the source."""


class LlavaPairs(PairSource):
    """LLaVA's records, as `parse_record` reads them; one with exactly one image is a pair."""

    @property
    def kind(self) -> str:
        """`llava`."""
        return "llava"

    def settings(self) -> dict[str, str | None]:
        # LLaVA's records have their fields by definition.
        return read_with(caption=None, id=None, root=self.root, base=self.records.base)

    def remark(self) -> str | None:
        read = asked = 0
        first = self.records.read(self.records.shards()[0])
        for record in islice(first, RECORDS_LOOKED_AT):
            try:
                turns = parse_record(record.value, read).turns if isinstance(record, Record) else ()
            except RecordError:
                continue
            if turns:
                read += 1
                asked += len(turns) > 2 or turns[0].text.rstrip().endswith("?")
        if asked * 2 <= read:
            return None
        return (
            f"{asked} of the first {read} records of {self.place} are questions with answers, not captions: of each, "
            "only the first answer is scored. Scores and levels are meant for captions"
        )

    def _pair(self, record: Record, number: int) -> Pair | Unusable:
        value = record.value
        try:
            sample = parse_record(value, number)
            if len(sample.images) != 1:
                raise RecordError("image_count", f"a pair has one image, the record has {len(sample.images)}")
            name = sample.images[0]
            caption = checked_caption(sample.caption)
            return Pair(record.number, sample.id, caption, Picture(name, path=resolve_image(name, self.root)))
        except (RecordError, ImageError) as error:
            return Unusable(record.number, own_id(value), error.reason, str(error))


class RowPairs(PairSource):
    """Rows of named fields: Parquet, CSV, data sets, JSON records that name a picture as `file_name`."""

    @property
    def kind(self) -> str:
        """As that of the records; a table in JSON is one as in CSV."""
        return "csv" if self.records.kind == "json" else self.records.kind

    def settings(self) -> dict[str, str | None]:
        # Files may differ in their columns, and then the usual names find another one in each.
        found = self.records.columns()
        caption, image, id = (
            ", ".join(sorted({name for name in names if name is not None})) or None
            for names in zip(*((one.caption, one.image, one.id) for one in found), strict=True)
        )
        return read_with(caption=caption, image=image, id=id, root=self.root, base=self.records.base)

    def _pair(self, record: Record, number: int) -> Pair | Unusable:
        if not isinstance(record.value, Mapping):
            found = f"expected a JSON object, found {type(record.value).__name__}"
            return Unusable(record.number, None, "not_an_object", found)
        return pair_of_row(record, number, record.root or self.root)


class MemberPairs(PairSource):
    """Members of tar files, as WebDataset has them.

    The caption is the sample's `.txt`, or the field of its `.json`; the id is the sample's key, unless a field of the
    `.json` is named.

    Args:
        records, root, place: see `PairSource`.
        names: the fields of `.json` members to read.
    """

    def __init__(self, records: RecordSource, root: Path, place: str, names: ColumnNames) -> None:
        super().__init__(records, root, place)
        self.names = names

    def settings(self) -> dict[str, str | None]:
        # As given: without names, each sample's own members decide.
        return read_with(caption=self.names.caption, id=self.names.id)

    def _pair(self, record: Record, number: int) -> Pair | Unusable:
        members: TarSample = record.value
        id = members.key
        try:
            values = values_of_members(members)
            if self.names.id is not None and values.get(self.names.id) is not None:
                id = str(values[self.names.id])
            caption = caption_of_members(members, values, self.names)
            return Pair(record.number, id, caption, picture_of_members(members))
        except RecordError as error:
            return Unusable(record.number, id, error.reason, f"{record.place}: {error}")


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
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, found {shard_size}")
    if image_root is not None and not image_root.is_dir():
        raise SourceError(f"the image root {image_root} is not a folder")
    names = ColumnNames(caption=caption_column, image=image_column, id=id_column)
    records = find_records(source, shard_size=shard_size, names=names)
    # A worker that gets the source may run in another folder.
    root = image_root.absolute() if image_root is not None else records.base or Path.cwd()
    if records.kind == "webdataset":
        return MemberPairs(records, root, str(source), names)
    is_llava = records.kind == "json" and not records.columns()
    return LlavaPairs(records, root, str(source)) if is_llava else RowPairs(records, root, str(source))


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


def pair_of_row(record: Record, number: int, root: Path) -> Pair | Unusable:
    """The pair a row holds, or why it holds none.

    Args:
        record: values by field; a picture is a path below `root`, bytes, or Hugging Face's `{"bytes", "path"}`.
        number: number of the row in the source, its id where it has no other.
        root: folder that paths of pictures start from.
    """
    row, columns = record.value, record.columns
    assert columns is not None
    own = None if columns.id is None else row.get(columns.id)
    id = str(number) if own is None or own == "" else str(own)
    try:
        caption = checked_caption(row.get(columns.caption), columns.caption)
        picture = _picture(row.get(columns.image), columns.image, root, record.place)
    except (RecordError, ImageError) as error:
        return Unusable(record.number, id, error.reason, str(error))
    return Pair(record.number, id, caption, picture)


def _picture(found: object, field: str, root: Path, place: str) -> Picture:
    if isinstance(found, Mapping):
        content, path = found.get("bytes"), found.get("path")
        if isinstance(content, bytes):
            return Picture(path if isinstance(path, str) and path else place, content=content)
        found = path
    if isinstance(found, bytes):
        return Picture(place, content=found)
    if found is None or found == "":
        raise RecordError("no_picture", f"`{field}` is empty")
    if not isinstance(found, str):
        raise RecordError("image_field", f"`{field}` must be a path or a picture, found {type(found).__name__}")
    return Picture(found, path=resolve_image(found, root))
