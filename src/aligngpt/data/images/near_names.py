"""Find the file that a missing image's name probably means."""

import os
import unicodedata
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from aligngpt.data.images.suffixes import IMAGE_SUFFIXES

MAX_NAMES = 100_000
"""Folders with more entries are searched only up to this many, so that a missing image costs little."""

SHOWN = 3


def near_names(path: Path) -> list[Path]:
    r"""Existing files whose path differs from a missing one's only in spelling.

    The differences considered are case, composed and decomposed Unicode (NFC, NFD), percent escapes (`%20`),
    backslashes in place of slashes, and, if no other file is found, the extension.
    """
    at, missing = path, list[str]()
    while not os.path.isdir(at) and at != at.parent:
        missing, at = [at.name, *missing], at.parent
    parts = [part for name in missing for part in name.replace("\\", "/").split("/") if part]
    for number, part in enumerate(parts):
        if os.path.lexists(at / part):
            found = [part]
        else:
            names, stems = _entries(at, os.stat(at).st_mtime_ns)
            found = names.get(_plain(part), [])
            if not found and number == len(parts) - 1:
                found = stems.get(_plain(Path(part).stem), [])
        if number == len(parts) - 1:
            return [at / name for name in sorted(found)[:SHOWN]]
        if not found:
            break
        at = at / found[0]
        if not os.path.isdir(at):
            break
    return []


@lru_cache(maxsize=8)
def _entries(folder: Path, modified: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The entries of a folder by their plain names, and its images by their plain names without extension."""
    names: dict[str, list[str]] = {}
    stems: dict[str, list[str]] = {}
    with os.scandir(folder) as entries:
        for _, entry in zip(range(MAX_NAMES), entries, strict=False):
            names.setdefault(_plain(entry.name), []).append(entry.name)
            stem, suffix = os.path.splitext(entry.name)
            if suffix.lower().removeprefix(".") in IMAGE_SUFFIXES:
                stems.setdefault(_plain(stem), []).append(entry.name)
    return names, stems


def _plain(name: str) -> str:
    """A name without the differences that `near_names` ignores."""
    return unicodedata.normalize("NFC", unquote(name)).casefold()
