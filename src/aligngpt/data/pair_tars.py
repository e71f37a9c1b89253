"""Pairs in tar files as WebDataset has them: files of the same name but for the extension are one sample."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligngpt.data.pair_columns import CAPTION_COLUMNS, ColumnNames, checked_caption
from aligngpt.data.pair_files import files_fingerprint
from aligngpt.data.pair_tar_members import BrokenTar, Member, read_members
from aligngpt.data.pairs import Pair, PairSource, Shard, Unusable
from aligngpt.data.pictures import Picture
from aligngpt.data.samples import RecordError

PICTURES = frozenset({"bmp", "gif", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp"})
MAX_TEXT = 16 << 20
"""Longest caption file read, in bytes."""

# The key goes up to the first dot of the base name, which is not empty (hidden files are no samples).
_KEY = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<extension>[^/]+)", re.DOTALL)


class TarPairs(PairSource):
    """Tar files, each one a shard.

    The caption is the sample's `.txt`, or the field of its `.json`; the id is the sample's key, unless a field of the
    `.json` is named.

    Args:
        folder: the folder that the files' names are told from.
        files: the files, in order.
        names: the fields of `.json` members to read.
    """

    kind = "webdataset"

    def __init__(self, folder: Path, files: Sequence[Path], names: ColumnNames) -> None:
        self.folder = folder
        self.files = tuple(files)
        self.names = names

    def shards(self) -> Sequence[Shard]:
        return [
            Shard(index, path.relative_to(self.folder).as_posix(), None, path=path)
            for index, path in enumerate(self.files)
        ]

    def read(self, shard: Shard) -> Iterator[Pair | Unusable]:
        assert shard.path is not None
        for record, sample in enumerate(tar_samples(shard.path)):
            if isinstance(sample, BrokenTar):
                yield Unusable(record, None, "broken_tar", sample.reason)
                continue
            id = sample.key
            try:
                values = sample.values()
                if self.names.id is not None and values.get(self.names.id) is not None:
                    id = str(values[self.names.id])
                yield Pair(record, id, sample.caption(values, self.names), sample.picture())
            except RecordError as error:
                yield Unusable(record, id, error.reason, f"{sample.key!r} in {shard.path}: {error}")

    def fingerprint(self) -> str:
        return files_fingerprint(self.files, self.folder)


@dataclass(slots=True)
class TarSample:
    """The members with one key."""

    key: str
    pictures: list[Picture] = field(default_factory=list)
    text: bytes | None = None
    json: bytes | None = None

    def add(self, extension: str, member: Member, path: Path) -> None:
        if extension in PICTURES:
            name = f"{member.name} in {path}"
            self.pictures.append(Picture(name, path=path, offset=member.offset, length=member.size))
        elif extension == "txt" and self.text is None:
            self.text = _text(member)
        elif extension == "json" and self.json is None:
            self.json = _text(member)

    @property
    def has_caption(self) -> bool:
        return self.text is not None or self.json is not None

    def picture(self) -> Picture:
        if not self.pictures:
            raise RecordError("no_picture", "there is no picture with this key")
        if len(self.pictures) > 1:
            raise RecordError("image_count", f"a pair has one image, the sample has {len(self.pictures)}")
        return self.pictures[0]

    def values(self) -> dict[str, Any]:
        """The fields of the sample's `.json`."""
        if self.json is None:
            return {}
        try:
            found = json.loads(self.json)
        except (ValueError, RecursionError) as error:
            if self.text is not None:
                return {}
            raise RecordError("broken_json", f"its .json cannot be read: {error}") from error
        if isinstance(found, dict):
            return found
        raise RecordError("not_an_object", f"expected a JSON object, found {type(found).__name__}")

    def caption(self, values: dict[str, Any], names: ColumnNames) -> str:
        if self.text is not None and names.caption is None:
            try:
                return checked_caption(self.text.decode("utf-8-sig"), ".txt")
            except UnicodeDecodeError as error:
                raise RecordError("broken_text", "its .txt is not UTF-8") from error
        wanted = CAPTION_COLUMNS if names.caption is None else (names.caption,)
        name = next((name for name in wanted if name in values), wanted[0])
        return checked_caption(values.get(name), name)


def tar_samples(path: Path) -> Iterator[TarSample | BrokenTar]:
    """The samples of a tar file; of one that breaks off, those that are whole."""
    sample: TarSample | None = None
    for member in read_members(path):
        if isinstance(member, BrokenTar):
            if sample is not None and sample.pictures and sample.has_caption:
                yield sample
            yield member
            return
        parts = _KEY.fullmatch(member.name.removeprefix("./"))
        if parts is None:
            continue
        if sample is None or parts["key"] != sample.key:
            if sample is not None and (sample.pictures or sample.has_caption):
                yield sample
            sample = TarSample(parts["key"])
        sample.add(parts["extension"].lower(), member, path)
    if sample is not None and (sample.pictures or sample.has_caption):
        yield sample


def _text(member: Member) -> bytes | None:
    return member.read() if member.size <= MAX_TEXT else None
