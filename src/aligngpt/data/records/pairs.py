"""Image-caption pairs: the records of a source, each read as one image and its caption."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
from aligngpt.data.sources.csv import DELIMITERS, CsvSource
from aligngpt.data.sources.fields import ColumnNames
from aligngpt.data.sources.finding import find_records
from aligngpt.data.sources.json_keys import REPEATED_KEY, RepeatedKeys
from aligngpt.data.sources.remote import RemotePath, located
from aligngpt.data.sources.tar_samples import TarSample

RECORDS_LOOKED_AT = 100
"""Number of leading records by which `PairSource.remark` judges a file."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its caption.

    Attributes:
        record: index in its shard, from 0.
        id: the record's own, or its index in the source; not necessarily unique.
        caption: as given, stripped.
        picture: where the image is; it has not been opened.
    """

    record: int
    id: str
    caption: str
    picture: Picture


@dataclass(frozen=True, slots=True)
class Unusable:
    """A record that is not a valid pair, and why.

    Attributes:
        record: index in its shard, from 0.
        id: the record's own, if it was found.
        reason: short name of the reject, as in `RecordError` and `ImageError`.
        detail: the full message.
    """

    record: int
    id: str | None
    reason: str
    detail: str


class PairSource(ABC):
    """The pairs of a source of records. Picklable: a worker gets the source and a shard to read.

    Args:
        records: the source.
        root: folder that image paths are relative to.
        place: display name of the source: the path, pattern or name it was opened with.
    """

    def __init__(self, records: RecordSource, root: Path, place: str) -> None:
        self.records, self.root, self.place = records, root, place

    @property
    def kind(self) -> str:
        """`llava` (JSON or JSON lines), `parquet`, `webdataset`, `dataset` (Hugging Face) or `csv` (a table of image
        names, as CSV or JSON lines)."""
        return self.records.kind

    def shards(self) -> Sequence[Shard]:
        """See `RecordSource.shards`."""
        return self.records.shards()

    def read(self, shard: Shard) -> Iterator[Pair | Unusable]:
        """Yield the records of one shard, in order; images are not opened.

        Raises:
            SourceError: the source can no longer be read.
        """
        for record in self.records.read(shard):
            if isinstance(record, BrokenRecord):
                yield Unusable(record.number, None, record.kind, record.detail)
            else:
                yield self._pair(record, shard.first + record.number)

    def fingerprint(self) -> str:
        """See `RecordSource.fingerprint`. It does not cover how the records are read; see `settings`."""
        return self.records.fingerprint()

    @abstractmethod
    def settings(self) -> dict[str, str | None]:
        """How the records are read: the settings, given to `open_pairs` or detected, that affect the pairs.

        The keys are those of `read_with` that apply to this kind of source.
        """

    def remark(self) -> str | None:
        """A sentence that users should read before they score the records; None if there is nothing to say."""
        return None

    @abstractmethod
    def _pair(self, record: Record, number: int) -> Pair | Unusable:
        """Read the pair in a record, given the record's index in the source."""


class LlavaPairs(PairSource):
    """LLaVA records, as `parse_record` reads them; a record with exactly one image is a pair."""

    @property
    def kind(self) -> str:
        """`llava`."""
        return "llava"

    def settings(self) -> dict[str, str | None]:
        # LLaVA records have fixed field names.
        return read_with(caption=None, id=None, root=self.root, base=self.records.base)

    def remark(self) -> str | None:
        read = asked = 0
        first = self.records.read(self.records.shards()[0])
        for record in islice(first, RECORDS_LOOKED_AT):
            if not isinstance(record, Record):
                continue
            with suppress(RecordError):
                asked += parse_record(record.value, read).is_question
                read += 1
        if asked * 2 <= read:
            return None
        return (
            f"{asked} of the first {read} records of {self.place} are questions with answers, not captions: "
            "only the first answer of each is scored. Scores and levels are meant for captions"
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
    """Rows of named fields: Parquet, CSV, Hugging Face data sets, JSON records that name an image in `file_name`."""

    @property
    def kind(self) -> str:
        """The kind of the records; a JSON table counts as `csv`."""
        return "csv" if self.records.kind == "json" else self.records.kind

    def settings(self) -> dict[str, str | None]:
        # Files may have different columns, so that the default names match a different one in each.
        found = self.records.columns()
        caption, image, id = (
            ", ".join(sorted({name for name in names if name is not None})) or None
            for names in zip(*((one.caption, one.image, one.id) for one in found), strict=True)
        )
        return read_with(caption=caption, image=image, id=id, root=self.root, base=self.records.base)

    def remark(self) -> str | None:
        if isinstance(self.records, CsvSource) and self.records.delimiter != ",":
            between = DELIMITERS[self.records.delimiter]
            return f"{self.place} is read as separated by {between}s, according to its header"
        return None

    def _pair(self, record: Record, number: int) -> Pair | Unusable:
        if not isinstance(record.value, Mapping):
            found = f"expected a JSON object, found {type(record.value).__name__}"
            return Unusable(record.number, None, "not_an_object", found)
        if isinstance(record.value, RepeatedKeys):
            return Unusable(record.number, own_id(record.value), "repeated_key", REPEATED_KEY)
        return pair_of_row(record, number, record.root or self.root)


class MemberPairs(PairSource):
    """Members of tar files in the WebDataset layout.

    The caption is the sample's `.txt`, or a field of its `.json`; the id is the sample's key, unless a field of the
    `.json` is named.

    Args:
        records, root, place: see `PairSource`.
        names: the fields of `.json` members to read.
    """

    def __init__(self, records: RecordSource, root: Path, place: str, names: ColumnNames) -> None:
        super().__init__(records, root, place)
        self.names = names

    def settings(self) -> dict[str, str | None]:
        # The names as given: without names, the members of each sample determine where its caption is.
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
    """Open the pairs at `source`; the kind of source is detected.

    Args:
        source: a JSON, JSON lines, CSV, TSV, COCO captions, Parquet or tar file; a folder of Parquet or tar files, or
            of images with a table of captions or a caption beside each; a pattern such as `{00000..00041}.tar` or
            `*.parquet`; a folder written by `Dataset.save_to_disk`; or the name of a data set on the Hugging Face hub.
        image_root: folder that image paths are relative to; the source's own folder if None.
        shard_size: maximum number of records per shard, for sources that can be split (a tar file cannot).
        caption_column: name of the caption field; one of `CAPTION_COLUMNS` if None.
        image_column: name of the image field; one of `IMAGE_COLUMNS` if None.
        id_column: name of the id field; `id`, `uid` or `key` if None.

    Raises:
        SourceError: there is nothing at `source`, or nothing of these kinds; or `image_root` is not a folder.
        ValueError: `shard_size` is not positive.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, found {shard_size}")
    image_root = None if image_root is None else located(image_root)
    if image_root is not None and not image_root.is_dir():
        raise SourceError(f"the image root {image_root} is not a folder")
    names = ColumnNames(caption=caption_column, image=image_column, id=id_column)
    records = find_records(source, shard_size=shard_size, names=names)
    # A worker that gets the source may have a different working directory.
    root = image_root.absolute() if image_root is not None else records.base or Path.cwd()
    if records.kind == "webdataset":
        return MemberPairs(records, root, str(source), names)
    is_llava = records.kind in ("json", "csv") and not records.columns()
    return LlavaPairs(records, root, str(source)) if is_llava else RowPairs(records, root, str(source))


def read_with(
    *, caption: str | None, id: str | None, image: str | None = None, root: Path | None = None, base: Path | None = None
) -> dict[str, str | None]:
    """Build the result of `PairSource.settings`.

    Args:
        caption: name of the caption field.
        id: name of the id field; None if a record's index is its id.
        image: name of the image field.
        root: folder that image paths are relative to; None if the images are in the source.
        base: folder of the source; None if it has none on this machine.

    Returns:
        `caption_column`, `image_column`, `id_column`, and two forms of the root, which is unchanged if either of them
        matches: `image_root`, relative to the source, stays the same when both are moved or copied together, and
        `image_root_absolute` stays the same when only the source is moved.
    """
    found = {"caption_column": caption, "image_column": image, "id_column": id}
    if root is not None:
        is_near = not isinstance(root, RemotePath) or (base is not None and root.is_relative_to(base))
        found["image_root"] = Path(os.path.relpath(root, base)).as_posix() if is_near else str(root)
        found["image_root_absolute"] = str(root) if isinstance(root, RemotePath) else os.path.abspath(root)
    return found


def pair_of_row(record: Record, number: int, root: Path) -> Pair | Unusable:
    """The pair in a row, or why the row is not a valid pair.

    Args:
        record: values by field; an image is a path below `root`, bytes, or Hugging Face's `{"bytes", "path"}`.
        number: index of the row in the source, which is its id if it has no other.
        root: folder that image paths are relative to.
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
        raise RecordError("image_field", f"`{field}` must be a path or an image, found {type(found).__name__}")
    return Picture(found, path=resolve_image(found, root))
