"""Rows of named fields (Parquet, CSV, data sets, JSON lines of file names) become pairs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligngpt.data.images import ImageError, resolve_image
from aligngpt.data.pairs import Pair, Unusable
from aligngpt.data.pictures import Picture
from aligngpt.data.samples import RecordError
from aligngpt.data.sources import SourceError

CAPTION_COLUMNS = ("caption", "text", "TEXT")
IMAGE_COLUMNS = ("image", "file_name", "path")
ID_COLUMNS = ("id", "uid", "key")


@dataclass(frozen=True, slots=True)
class Columns:
    """The fields of a row that are read; without `id`, a row's number is its id."""

    caption: str
    image: str
    id: str | None

    def all(self) -> list[str]:
        """The names, each once."""
        return list(dict.fromkeys(name for name in (self.caption, self.image, self.id) if name is not None))


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """What a person calls the fields; None where the usual names are looked for."""

    caption: str | None = None
    image: str | None = None
    id: str | None = None

    @property
    def given(self) -> bool:
        """Whether any field was named."""
        return any(name is not None for name in (self.caption, self.image, self.id))

    def found_in(self, available: Iterable[str], where: str) -> Columns:
        """The fields to read, of those that are there.

        Raises:
            SourceError: the caption, the picture or a field that was named is not there.
        """
        there = list(available)
        caption = _find("caption", self.caption, CAPTION_COLUMNS, there, where)
        image = _find("picture", self.image, IMAGE_COLUMNS, there, where)
        id = None
        if self.id is not None or any(name in there for name in ID_COLUMNS):
            id = _find("id", self.id, ID_COLUMNS, there, where)
        return Columns(caption, image, id)


def pair_of_row(
    row: Mapping[str, Any], columns: Columns, *, record: int, number: int, root: Path, place: str
) -> Pair | Unusable:
    """The pair a row holds, or why it holds none.

    Args:
        row: values by field; a picture is a path below `root`, bytes, or Hugging Face's `{"bytes", "path"}`.
        columns: the fields to read.
        record: number of the row in its shard.
        number: number of the row in the source, its id where it has no other.
        root: folder that paths of pictures start from.
        place: name of a picture that has none.
    """
    own = None if columns.id is None else row.get(columns.id)
    id = str(number) if own is None or own == "" else str(own)
    try:
        caption = checked_caption(row.get(columns.caption), columns.caption)
        picture = _picture(row.get(columns.image), columns.image, root, place)
    except (RecordError, ImageError) as error:
        return Unusable(record, id, error.reason, str(error))
    return Pair(record, id, caption, picture)


def checked_caption(found: object, field: str = "caption") -> str:
    """A caption without outer white space.

    Raises:
        RecordError: it is missing, no text, empty, or holds what no text holds (NUL, half a character).
    """
    if found is None:
        raise RecordError("no_caption", f"`{field}` is missing")
    if not isinstance(found, str):
        raise RecordError("no_caption", f"`{field}` must be a text, found {type(found).__name__}")
    caption = found.strip()
    if not caption:
        raise RecordError("empty_text", f"`{field}` is empty")
    if "\0" in caption:
        raise RecordError("broken_text", f"`{field}` holds a NUL character: {caption!r:.80}")
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise RecordError("broken_text", f"`{field}` holds half a character") from error
    return caption


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


def _find(what: str, named: str | None, usual: tuple[str, ...], there: list[str], where: str) -> str:
    wanted = usual if named is None else (named,)
    for name in wanted:
        if name in there:
            return name
    raise SourceError(
        f"{where} has no column for the {what}: expected {' or '.join(wanted)}, found {', '.join(there) or 'none'}; "
        "name the right one"
    )
