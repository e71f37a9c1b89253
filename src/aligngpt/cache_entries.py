"""What lies in the cache: entries, their sizes and when they were last used; and removing the oldest."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aligngpt.cache import CacheError, cache_folder
from aligngpt.leftovers import remove, temporary_beside

KINDS = ("samples", "features", "converted", "npm", "debian")
"""The kinds of entries; anything else in the cache folder does not belong to it and is never touched."""

_PACKED = {"npm": re.compile(r"[a-z0-9][a-z0-9._-]*-[0-9][\w.+-]*-[0-9a-f]{12}"), "debian": re.compile("openclipart")}
"""Names of the folders of unpacked packages, by kind; other entries are named by their key."""

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

_DAY = 86400.0
_LIMIT = re.compile(r"(?P<number>\d+(\.\d+)?) ?(?P<unit>[KMGT]?B|d|days?)", re.IGNORECASE)
_NAME = re.compile(r"[0-9a-f]{64}(\.safetensors)?")


@dataclass(frozen=True)
class CacheEntry:
    """An entry of the cache.

    Attributes:
        kind: one of `KINDS`.
        path: its file or folder.
        size: in bytes.
        used: when it was last read or written, in seconds since the epoch. File systems record reads only about once
            a day, or not at all.
    """

    kind: str
    path: Path
    size: int
    used: float


@dataclass(frozen=True)
class Limit:
    """What may stay in the cache: at most `size` bytes in all, or entries used in the last `days`."""

    size: float | None = None
    days: float | None = None

    def beyond(self, entries: Sequence[CacheEntry]) -> list[CacheEntry]:
        """The entries to remove, those used longest ago first."""
        oldest = sorted(entries, key=lambda entry: entry.used)
        if self.days is not None:
            before = time.time() - self.days * _DAY
            return [entry for entry in oldest if entry.used < before]
        left = sum(entry.size for entry in oldest)
        chosen = []
        for entry in oldest:
            if self.size is None or left <= self.size:
                break
            left -= entry.size
            chosen.append(entry)
        return chosen


def parse_limit(text: str) -> Limit:
    """Read a size such as `20GB` or an age such as `30d`.

    Raises:
        CacheError: it is neither.
    """
    found = _LIMIT.fullmatch(text.strip())
    if found is None:
        raise CacheError(f"{text!r} is neither a size such as 20GB nor an age in days such as 30d")
    number, unit = float(found["number"]), found["unit"].upper()
    return Limit(days=number) if unit.startswith("D") else Limit(size=number * UNITS[unit])


def cache_entries() -> list[CacheEntry]:
    """All entries of the cache; temporary files of running commands are not among them."""
    found = []
    for kind in KINDS:
        for path in _packages(kind) if kind in _PACKED else _paths(cache_folder(kind), 3):
            # Another process may remove an entry in the meantime.
            with suppress(OSError):
                # Looking at a folder counts as reading it, so only files say when an entry was used.
                files = [path] if path.is_file() else [one for one in path.rglob("*") if _is_own_file(one)]
                states = [one.stat() for one in files] or [path.stat()]
                used = max(max(state.st_atime, state.st_mtime) for state in states)
                found.append(CacheEntry(kind, path, sum(state.st_size for state in states), used))
    return found


def remove_entries(entries: Sequence[CacheEntry]) -> list[CacheEntry]:
    """Remove entries, and return those that could not be removed."""
    left = []
    for entry in entries:
        # Renamed first, so that no other process finds half of a folder.
        aside = temporary_beside(entry.path)
        try:
            os.rename(entry.path, aside)
        except FileNotFoundError:
            continue
        except OSError:
            left.append(entry)
            continue
        remove(aside)
        if os.path.lexists(aside):
            left.append(entry)
    return left


def size_text(size: float) -> str:
    """A number of bytes in decimal units, as in `1.5 GB`."""
    unit = next((name for name in reversed(UNITS) if size >= UNITS[name]), "B")
    return f"{size:.0f} B" if unit == "B" else f"{size / UNITS[unit]:.1f} {unit}"


def _is_own_file(path: Path) -> bool:
    """Whether it is a file and no link to one, which would be counted twice."""
    return path.is_file() and not path.is_symlink()


def _packages(kind: str) -> Iterator[Path]:
    """The folders of unpacked packages of a kind."""
    try:
        inside = sorted(cache_folder(kind).iterdir())
    except OSError:
        return
    for path in inside:
        if path.is_symlink() or not path.is_dir() or not _PACKED[kind].fullmatch(path.name):
            continue
        # What `dpkg-deb` unpacks lies below `usr`; another folder of the same name is not ours.
        if kind != "debian" or [one.name for one in path.iterdir()] == ["usr"]:
            yield path


def _paths(folder: Path, depth: int) -> Iterator[Path]:
    """The entries below a folder: named by their key, in the folder itself or in folders of two digits of the key."""
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return
    for path in inside:
        if path.is_symlink():
            continue
        if _NAME.fullmatch(path.name):
            yield path
        elif depth > 1 and re.fullmatch(r"[0-9a-f]{2}", path.name):
            yield from _paths(path, depth - 1)
