"""Checks whether writing a file would overwrite an input, also through links or different spellings of a path."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from aligngpt.scoring.score_files import ScoresError


def same_place(one: Path, other: Path) -> bool:
    """Whether two paths are, or would be, the same file: by another spelling, symbolic links, or hard links."""
    if _entries(one) & _entries(other):
        return True
    return one.exists() and other.exists() and one.samefile(other)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a file is, or would be, inside a folder at any depth."""
    root = folder.resolve()
    return any(root in entry.parents for entry in _entries(path))


def check_apart(written: Sequence[Path], kept: Iterable[Path]) -> None:
    """Check that the files to write are all distinct, and that none of them is a file to keep.

    Raises:
        ScoresError: a file would be overwritten; the message names it.
    """
    stays = list(kept)
    for index, path in enumerate(written):
        if any(same_place(path, other) for other in stays):
            raise taken(path)
        if any(same_place(path, other) for other in written[:index]):
            raise ScoresError(f"{path} would be written twice, by two different outputs; give each its own path")


def taken(path: Path) -> ScoresError:
    """The error for a file that would be overwritten."""
    return ScoresError(f"{path} is an input or must be kept; choose another path for the output")


def _entries(path: Path) -> set[Path]:
    """The directory entry that writing to the path replaces, and the file that it resolves to."""
    return {path.parent.resolve() / path.name, path.resolve()}
