"""The fields of rows that are read, by the names that a person gives or by the usual ones."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aligngpt.data.sources.base import ReadColumns, SourceError

CAPTION_COLUMNS = ("caption", "text", "TEXT")
IMAGE_COLUMNS = ("image", "file_name", "path")
ID_COLUMNS = ("id", "uid", "key")
PICTURE_COLUMNS = ("image", "images", *(name for name in IMAGE_COLUMNS if name != "image"))
"""Those of records that may have several pictures, too."""


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

    def found_in(self, available: Iterable[str], where: str) -> ReadColumns:
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
        return ReadColumns(caption, image, id)


def _find(what: str, named: str | None, usual: tuple[str, ...], there: list[str], where: str) -> str:
    wanted = usual if named is None else (named,)
    for name in wanted:
        if name in there:
            return name
    raise SourceError(
        f"{where} has no column for the {what}: expected {' or '.join(wanted)}, found {', '.join(there) or 'none'}; "
        "name the right one"
    )


def is_given(value: object) -> bool:
    """Whether a field holds something: none of the ways in which tables write that a record has no value."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, list | tuple):
        return any(is_given(one) for one in value)
    if isinstance(value, Mapping):
        return any(is_given(one) for one in value.values())
    return value is not None


def listed(found: object) -> list[object]:
    """What a cell holds, without empty ones: one, or several in a list."""
    return [one for one in (found if isinstance(found, list) else [found]) if is_given(one)]


def first_of(names: Iterable[str], there: Iterable[str]) -> str | None:
    """The first of the names that is there."""
    return next((name for name in names if name in there), None)
