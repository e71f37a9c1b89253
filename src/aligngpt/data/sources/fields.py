"""The fields of rows that are read, under names given by the user or under the default names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aligngpt.data.sources.base import ReadColumns, SourceError

# `title` and `filepath` are open_clip's defaults; `jpg`, `png` and `webp` hold the images that img2dataset stores.
CAPTION_COLUMNS = ("caption", "text", "TEXT", "title")
IMAGE_COLUMNS = ("image", "file_name", "filepath", "path", "jpg", "png", "webp")
ID_COLUMNS = ("id", "uid", "key")
NUMBERS = ("level", "similarity", "score")
"""Fields that hold numbers; in CSV files, everything is text."""
PICTURE_COLUMNS = ("image", "images", *(name for name in IMAGE_COLUMNS if name != "image"))
"""The image columns of records that may also have several images."""

_NO_ROW = ("image", "images", "conversations", "messages", "texts", "question", "question_id", "answer", "answers")
"""Fields of a JSON record that are read instead of the file name and the caption of a row."""


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """Field names given by the user; None to look for the default names."""

    caption: str | None = None
    image: str | None = None
    id: str | None = None

    @property
    def given(self) -> bool:
        """Whether any field name was given."""
        return any(name is not None for name in (self.caption, self.image, self.id))

    def found_in(self, available: Iterable[str], where: str) -> ReadColumns:
        """Choose the fields to read from the available ones.

        Raises:
            SourceError: the caption, the image or a field that was named is missing.
        """
        there = list(available)
        caption = _find("caption", self.caption, CAPTION_COLUMNS, there, where)
        image = _find("image", self.image, IMAGE_COLUMNS, there, where)
        id = None
        if self.id is not None or any(name in there for name in ID_COLUMNS):
            id = _find("id", self.id, ID_COLUMNS, there, where)
        return ReadColumns(caption, image, id)


def check_once(names: Iterable[str], there: Sequence[str], where: str) -> None:
    """Check that no column that is read has the name of another, of which only the last would be read.

    Raises:
        SourceError: one has.
    """
    for name in names:
        if there.count(name) > 1:
            raise SourceError(f"{where} has {there.count(name)} columns {name}; rename all but the one to read")


def _find(what: str, named: str | None, usual: tuple[str, ...], there: list[str], where: str) -> str:
    wanted = usual if named is None else (named,)
    for name in wanted:
        if name in there:
            return name
    raise SourceError(
        f"{where} has no column for the {what}: expected {' or '.join(wanted)}, found {', '.join(there) or 'none'}; "
        f"rename it{'' if named is None else ', or name another'}"
    )


def is_given(value: object) -> bool:
    """Whether a field has a value, as opposed to the various ways in which tables write a missing one."""
    # A loop, because JSON may be nested more deeply than calls.
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, list | tuple):
            left.extend(one)
        elif isinstance(one, Mapping):
            left.extend(one.values())
        elif one is not None and not (isinstance(one, str) and not one.strip()):
            return True
    return False


def listed(found: object) -> list[object]:
    """The non-empty values of a cell, which holds one value or a list."""
    return [one for one in (found if isinstance(found, list) else [found]) if is_given(one)]


def first_of(names: Iterable[str], there: Iterable[str]) -> str | None:
    """The first of `names` that is in `there`; None if there is none."""
    return next((name for name in names if name in there), None)


def is_row(record: Mapping[str, object]) -> bool:
    """Whether a JSON record is a row of a table: it has a file name, and nothing that is read instead of one."""
    return "file_name" in record and not any(name in record for name in _NO_ROW)
