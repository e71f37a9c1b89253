"""Folders in which each image has its caption beside it, in a file of the same name: `a.jpg` and `a.txt`."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from aligngpt.data.sources.base import BrokenRecord, ReadColumns, Record, RecordSource, Shard, SourceError
from aligngpt.data.sources.companions import Companions, companions_in, folders_in, read_text
from aligngpt.data.sources.fields import CAPTION_COLUMNS, ColumnNames, first_of
from aligngpt.data.sources.json_keys import REPEATED_KEY, RepeatedKeys, decoded
from aligngpt.data.sources.tar_samples import MAX_TEXT

TEXT = ".txt"
"""The name of the caption column unless a field of the `.json` is named."""


class PictureFiles(RecordSource):
    """The images of a folder, at any depth, with the captions beside them; also the `files` output of img2dataset.

    The caption is in a text file, or in a field of a `.json`. An image without a caption, a text without an image, and
    a text or `.json` that links to a file outside the folder are broken records; a `.json` without an image is not a
    record. The id is the path without its suffix.

    Args:
        folder: the folder.
        shard_size: maximum number of records per shard; a shard is in one folder.
        names: the caption field of `.json` files, to be read instead of the texts.

    Raises:
        SourceError: a column for the image or the id is named.
    """

    kind = "files"

    def __init__(self, folder: Path, shard_size: int, names: ColumnNames) -> None:
        self.folder = self.base = folder
        self.shard_size = shard_size
        # When scored pairs are read again, these are the names in `columns`.
        if names.image not in (None, "image") or names.id not in (None, "id"):
            raise SourceError(
                f"{folder} has its captions in files beside the images, so there are no columns for image and id; omit "
                "--image-column and --id-column"
            )
        self.field = None if names.caption == TEXT else names.caption
        self._columns = ReadColumns(caption=self.field or TEXT, image="image", id="id")

    def shards(self) -> Sequence[Shard]:
        found: list[Shard] = []
        first = 0
        for folder in folders_in(self.folder):
            count = len(companions_in(folder))
            name = folder.relative_to(self.folder).as_posix()
            for start in range(0, count, self.shard_size):
                stop = min(start + self.shard_size, count)
                shown = f"{name}[{start}:{stop}]"
                found.append(Shard(len(found), shown, stop - start, folder, start, stop, first + start))
            first += count
        if not found:
            raise SourceError(f"{self.folder} has no records: no image with a .txt or .json of the same name")
        return found

    def read(self, shard: Shard) -> Iterator[Record | BrokenRecord]:
        assert shard.path is not None
        entries = sorted(companions_in(shard.path).items())[shard.start : shard.stop]
        for number, (stem, entry) in enumerate(entries):
            yield self._record(number, shard.path, stem, entry)

    def fingerprint(self) -> str:
        """A hash of the names and sizes of all files, and of the content of the texts."""
        digest = hashlib.sha256()
        for folder in folders_in(self.folder):
            for _, entry in sorted(companions_in(folder).items()):
                texts = [*entry.texts, *([] if entry.json is None else [entry.json])]
                outside = self._links_outside(folder, entry)
                for name in (*entry.pictures, *texts):
                    path = folder / name
                    content = read_text(path) if name in texts and name not in outside else b""
                    digest.update(
                        f"{path.relative_to(self.folder).as_posix()}\t{path.stat().st_size}\t".encode(
                            "utf-8", "surrogateescape"
                        )
                    )
                    digest.update(hashlib.sha256(content or b"").digest())
        return digest.hexdigest()

    def columns(self) -> set[ReadColumns]:
        return {self._columns}

    def _record(self, number: int, folder: Path, stem: str, entry: Companions) -> Record | BrokenRecord:
        path = (folder / stem).relative_to(self.folder).as_posix()
        texts = [*entry.texts, *([] if entry.json is None else [entry.json])]
        if not entry.pictures:
            return BrokenRecord(number, "no_picture", f"{folder / texts[0]} has no image of the same name beside it")
        if len(entry.pictures) > 1:
            found = " and ".join(entry.pictures)
            return BrokenRecord(number, "image_count", f"{folder / stem} has {found}, expected one image for a caption")
        picture = folder / entry.pictures[0]
        if not texts:
            return BrokenRecord(number, "no_caption", f"{picture} has no .txt or .json of the same name beside it")
        if outside := self._links_outside(folder, entry):
            link = folder / outside[0]
            return BrokenRecord(
                number,
                "outside_root",
                f"{link} is a symbolic link to {link.resolve()}, which is not inside {self.folder}; copy the text into "
                "the folder",
            )
        if self.field is None and (differing := _differing(folder, entry.texts)):
            found = " and ".join(differing)
            return BrokenRecord(number, "text_count", f"{picture} has {found}, which differ; expected one caption")
        try:
            caption = self._caption(folder, entry)
        except ValueError as error:
            return BrokenRecord(number, "broken_text", str(error))
        value = {"image": picture.relative_to(self.folder).as_posix(), self._columns.caption: caption, "id": path}
        return Record(number, value, str(picture), self._columns)

    def _links_outside(self, folder: Path, entry: Companions) -> list[str]:
        """The texts, and the `.json`, that link to files outside the source."""
        root = self.folder.resolve() if entry.links else self.folder
        return [name for name in entry.links if not (folder / name).resolve().is_relative_to(root)]

    def _caption(self, folder: Path, entry: Companions) -> object:
        """The caption of an image; None if its `.json` has none. Raises ValueError if a file cannot be read."""
        if entry.texts and self.field is None:
            path = folder / entry.texts[0]
            if (content := read_text(path)) is None:
                raise ValueError(f"{path} cannot be read, or is longer than {MAX_TEXT} bytes")
            try:
                return content.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 at its byte {error.start}") from error
        if entry.json is None:
            raise ValueError(f"{folder / entry.texts[0]} has no .json beside it with the field {self.field}")
        path = folder / entry.json
        try:
            fields = decoded(read_text(path) or b"")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{path}: expected a JSON object, found {type(fields).__name__}")
        if isinstance(fields, RepeatedKeys):
            raise ValueError(f"{path}: {REPEATED_KEY}")
        name = self.field or first_of(CAPTION_COLUMNS, fields)
        return None if name is None else fields.get(name)


def _differing(folder: Path, texts: Sequence[str]) -> list[str]:
    """The names of the texts of an image if their contents are not the same."""
    if len(texts) < 2:
        return []
    contents = {(read_text(folder / name) or b"").strip() for name in texts}
    return list(texts) if len(contents) > 1 else []


def has_picture_files(folder: Path) -> bool:
    """Whether any image at any depth has a text or a `.json` of the same name beside it."""
    return any(
        entry.pictures and (entry.texts or entry.json is not None)
        for below in folders_in(folder)
        for entry in companions_in(below).values()
    )
