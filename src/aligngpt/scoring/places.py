"""Whether writing a file would change one that is read, whatever links and spellings lead there."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from aligngpt.scoring.score_files import ScoresError


def same_place(one: Path, other: Path) -> bool:
    """Whether two paths are one file, or would be: by another spelling, through links, or as hard links."""
    if _entries(one) & _entries(other):
        return True
    return one.exists() and other.exists() and one.samefile(other)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a file is, or would be, in a folder at any depth."""
    root = folder.resolve()
    return any(root in entry.parents for entry in _entries(path))


def check_apart(written: Sequence[Path], kept: Iterable[Path]) -> None:
    """Nothing, when the files that are written are different ones, and none is one of those that stay.

    Raises:
        ScoresError: names the file that would be written over.
    """
    stays = list(kept)
    for index, path in enumerate(written):
        if any(same_place(path, other) for other in stays):
            raise taken(path)
        if any(same_place(path, other) for other in written[:index]):
            raise ScoresError(f"{path} would be written twice, as two different things; give each its own place")


def taken(path: Path) -> ScoresError:
    """The error that a file would be written over."""
    return ScoresError(f"{path} is part of what is read or kept here; give what is written another place")


def _entries(path: Path) -> set[Path]:
    """The entry of a folder that is replaced when the path is written, and the file that it leads to."""
    return {path.parent.resolve() / path.name, path.resolve()}
