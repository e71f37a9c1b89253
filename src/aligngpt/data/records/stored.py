"""The samples of Parquet and tar files, each with the location of its image; no image is decoded."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from aligngpt.data.images.keys import image_key
from aligngpt.data.images.opening import ImageError
from aligngpt.data.images.reference import Picture
from aligngpt.data.records.captions import checked_caption
from aligngpt.data.records.columns import ASKING, READ_COLUMNS, RECORD_IDS, columns_read
from aligngpt.data.records.conversation import TURN_FIELDS
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.instructions import instruction_layout
from aligngpt.data.records.members import caption_of_members, picture_of_members, values_of_members
from aligngpt.data.records.pair import question_field
from aligngpt.data.records.pictures import STORED
from aligngpt.data.records.ratings import RATINGS_SUFFIX
from aligngpt.data.records.sample import Sample, parse_record
from aligngpt.data.sources.base import BrokenRecord, StoredAt
from aligngpt.data.sources.fields import (
    CAPTION_COLUMNS,
    PICTURE_COLUMNS,
    ColumnNames,
    first_of,
    is_given,
    listed,
)
from aligngpt.data.sources.finding import Archive
from aligngpt.data.sources.given_level import set_level
from aligngpt.data.sources.parquet import ParquetSource
from aligngpt.data.sources.parquet_rows import stored_bytes
from aligngpt.data.sources.tar import TarSource
from aligngpt.data.sources.tar_samples import TarSample


class Found(NamedTuple):
    """A sample of an archive.

    Attributes:
        sample: if `stored` is given, its image path is only a display name and is never opened.
        stored: where its image is; None if it has no image, or one that is a file below the image root.
        key: content hash that is equal for equal images; None to identify the image by its name.
        picture: the image, if it must still be checked.
        trouble: why the image cannot be used: short name of the reject, and the full message.
        fields: the record that `parse_record` read the sample from.
    """

    sample: Sample
    stored: StoredAt | None = None
    key: int | None = None
    picture: Picture | None = None
    trouble: tuple[str, str] | None = None
    fields: Mapping[str, Any] = {}


class Unread(NamedTuple):
    """A record that is not a valid sample: the arguments of `Rejects.add`."""

    record: int
    id: str | None
    reason: str
    detail: str


def archive_samples(archive: Archive, *, check_images: bool) -> Iterator[Found | Unread]:
    """Yield the samples of all files of an archive in order, numbered consecutively across files.

    Tar files are read for their headers and texts only, Parquet files for every page of the columns used.

    Raises:
        SourceError: a file cannot be opened, or lacks the columns of a sample.
    """
    if isinstance(archive, TarSource):
        return _tar_samples(archive)
    return _parquet_samples(archive, check_images=check_images)


def _tar_samples(archive: TarSource) -> Iterator[Found | Unread]:
    number = 0
    for file, shard in enumerate(archive.shards()):
        for record in archive.read(shard):
            if isinstance(record, BrokenRecord):
                yield Unread(number, None, record.kind, record.detail)
            else:
                try:
                    yield _of_members(record.value, number, file, shard.name)
                except RecordError as error:
                    yield Unread(number, record.value.key, error.reason, f"{record.place}: {error}")
            number += 1


def _of_members(members: TarSample, record: int, file: int, shard: str) -> Found:
    values = values_of_members(members)
    fields, speaks = _spoken(values)
    if not speaks:
        fields["caption"] = caption_of_members(members, values, ColumnNames())
    id = next((values[name] for name in RECORD_IDS if values.get(name) is not None), members.key)
    named = [one for name in ("image", "images") for one in listed(values.get(name))]
    if not members.pictures and not named and speaks:
        # All its fields are passed on to be checked: none of them may name an image.
        return _found(values, id, record, None)
    picture = picture_of_members(members)
    if max(len(listed(values.get(name))) for name in ("image", "images")) > 1:
        raise RecordError("image_count", f"its .json names {len(named)} images, but there is one with this key")
    assert picture.length is not None
    stored = StoredAt(file, -1, picture.offset, picture.length)
    # The key includes the tar file's name, so that the same name in another file is a different image, and the offset,
    # which differs for members of one name, as in concatenated tar files.
    name = f"{shard}/{picture.name.rpartition(' in ')[0]}"
    key = image_key([name, str(picture.offset)])
    found = _found(fields, id, record, name)
    others = {name: value for name, value in values.items() if name not in ("level", *RECORD_IDS)}
    return found._replace(stored=stored, key=key, picture=picture, fields={**others, **found.fields})


def _spoken(values: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The fields read from a record, except its image and caption, and whether it has turns or a question."""
    fields = {name: value for name, value in values.items() if name in READ_COLUMNS or name.endswith(RATINGS_SUFFIX)}
    asked = question_field(values)
    turns = any(values.get(name) is not None for name in TURN_FIELDS)
    speaks = asked is not None or turns or instruction_layout(values) is not None
    if asked is not None:
        fields[asked] = values[asked]
    return fields, speaks


def _parquet_samples(archive: ParquetSource, *, check_images: bool) -> Iterator[Found | Unread]:
    for stored, record in archive.read_all(columns_read):
        if isinstance(record, BrokenRecord):
            yield Unread(record.number, None, record.kind, record.detail)
        else:
            yield _of_row(record.value, record.number, stored, record.place, check_images=check_images)


def _of_row(
    values: Mapping[str, Any], record: int, stored: StoredAt, place: str, *, check_images: bool
) -> Found | Unread:
    id = next((values[name] for name in RECORD_IDS if values.get(name) not in (None, "")), record)
    column = first_of(PICTURE_COLUMNS, values)
    try:
        fields, speaks = _spoken(values)
        if not speaks:
            name = first_of(CAPTION_COLUMNS, values) or CAPTION_COLUMNS[0]
            fields["caption"] = checked_caption(values.get(name), name)
        pictures = [] if column is None else listed(values.get(column))
        if column != "images" and is_given(values.get("images")):
            raise RecordError("image_field", f"there are images in `images`, expected all of them in `{column}`")
        content = next((content for one in pictures if (content := stored_bytes(one)) is not None), None)
        if content is None:
            paths: list[str] = []
            for one in pictures:
                path = one.get("path") if isinstance(one, Mapping) else one
                if not isinstance(path, str):
                    kind = type(path).__name__
                    raise RecordError("image_field", f"`{column}` must be a path or an image, found {kind}")
                paths.append(path)
            if not paths and not speaks:
                raise RecordError("no_picture", f"`{column}` is empty")
            return _found(fields, id, record, paths or None)
        if len(pictures) > 1:
            raise RecordError(
                "image_count",
                f"`{column}` has {len(pictures)} images, but only one per record can be embedded in Parquet; save "
                "them as files and list their paths in JSON",
            )
        found = _found(fields, id, record, place)
    except RecordError as error:
        return Unread(record, str(id), error.reason, f"{place}: {error}")
    # Each question about the same image embeds a copy of it, so the name does not identify the image.
    key = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)
    found = found._replace(stored=stored._replace(length=len(content)), key=key)
    if check_images:
        try:
            Picture(place, content=content).check()
        except ImageError as error:
            return found._replace(trouble=(error.reason, str(error)))
    return found


def _found(fields: Mapping[str, Any], id: object, record: int, image: str | list[str] | None) -> Found:
    """The sample in a record's fields; `image` is a list of paths, or the display name of a single image."""
    given = {name: value for name, value in fields.items() if value is not None or name in ASKING}
    level = given.pop("level", None)
    if level is not None:
        try:
            set_level(given, level)
        except ValueError as error:
            raise RecordError("level", str(error)) from error
    # `parse_record` checks paths, which a display name need not be.
    names = {} if image is None else {"image": image if isinstance(image, list) else STORED}
    read = given | {"id": id} | names
    sample = parse_record(read, record)
    if isinstance(image, str) and len(sample.images) > 1:
        raise RecordError(
            "image_count",
            f"the turns show the image {len(sample.images)} times, but an image that is stored with its record can be "
            "shown only once; save it as a file and list its path in JSON",
        )
    return Found(replace(sample, images=(image,)) if isinstance(image, str) else sample, fields=read)
