"""Files of the same name beside each other in a folder: an image, its text, its `.json`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.tar_samples import MAX_TEXT, PICTURES, TEXTS


@dataclass(slots=True)
class Companions:
    """The files of one folder with the same name up to the last dot.

    Attributes:
        pictures, texts: names of the images and texts.
        json: name of the `.json`; None if there is none.
        links: those of the texts and the `.json` that are symbolic links.
    """

    pictures: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    json: str | None = None
    links: list[str] = field(default_factory=list)


def folders_in(folder: Path, *, hidden: bool = False) -> Iterator[Path]:
    """Yield a folder and those below it, in the order of their names; links are not followed.

    Args:
        folder: the folder.
        hidden: also yield the folders that begin with a dot.

    Raises:
        SourceError: a folder cannot be read, and is none that a system keeps for itself.
    """
    for name, below, _ in os.walk(folder, onerror=_unreadable):
        below[:] = sorted(one for one in below if hidden or not one.startswith("."))
        yield Path(name)


def _unreadable(error: OSError) -> None:
    folder = Path(error.filename)
    if folder.name != "lost+found" and not folder.name.startswith("."):
        raise SourceError(
            f"the folder {folder} cannot be read: {error.strerror or error}; make it readable, or move it elsewhere if "
            "it is not part of the data"
        ) from error


def is_hidden(name: str) -> bool:
    """Whether a file is not shown to the user and is not data, such as macOS's `._0.png` beside `0.png`."""
    return name.startswith(".")


def companions_in(folder: Path) -> dict[str, Companions]:
    """The files of a folder that belong to records, by the name without the suffix."""
    found: dict[str, Companions] = {}
    try:
        entries = [entry for entry in os.scandir(folder) if entry.is_file() and not is_hidden(entry.name)]
        names = sorted((entry.name, entry.is_symlink()) for entry in entries)
    except OSError as error:
        raise SourceError(f"{folder} cannot be read: {error.strerror or error}") from error
    for name, is_link in names:
        stem, _, suffix = name.rpartition(".")
        if not stem:
            continue
        if suffix.lower() in PICTURES:
            found.setdefault(stem, Companions()).pictures.append(name)
            continue
        if suffix.lower() in TEXTS:
            found.setdefault(stem, Companions()).texts.append(name)
        elif suffix.lower() == "json":
            found.setdefault(stem, Companions()).json = name
        else:
            continue
        if is_link:
            found[stem].links.append(name)
    # Folders have many other JSON files, such as the results of a command.
    return {stem: entry for stem, entry in found.items() if entry.pictures or entry.texts}


def read_text(path: Path) -> bytes | None:
    """The content of a text file; None if it is too long or cannot be read."""
    try:
        return path.read_bytes() if path.stat().st_size <= MAX_TEXT else None
    except OSError:
        return None
