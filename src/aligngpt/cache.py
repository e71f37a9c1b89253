"""The cache folder for derived data; it may be removed while no process uses it, and is rebuilt as needed."""

import getpass
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_folder
from aligngpt.progress import warn

CACHE_VARIABLE = "ALIGNGPT_CACHE"


class CacheError(AlignGPTError):
    """The cache folder cannot be written."""


def cache_folder(kind: str) -> Path:
    """The cache folder for one kind of entry; it is not created.

    It lies in `$ALIGNGPT_CACHE`, else in `$XDG_CACHE_HOME/aligngpt`, else in `~/.cache/aligngpt`; for a user without
    a home, in a private temporary folder, with a warning.

    Args:
        kind: kind of entries, used as the folder name, such as `samples`.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser().absolute() / kind
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore relative paths.
    try:
        base = Path(shared) if os.path.isabs(shared) else Path("~/.cache").expanduser()
    except RuntimeError:
        # This user has no home, as in a container that is started with nothing but the number of a user.
        return _instead_of(Path("~/.cache/aligngpt")) / kind
    return base / "aligngpt" / kind


def entry_path(kind: str, name: str) -> Path:
    """The path of an entry, existing or not: in `cache_folder`, or in the temporary folder if that is read-only.

    Existing entries of a read-only cache are used. Entries in the temporary folder are reused until the system removes
    them; a warning is printed the first time.

    Args:
        kind: see `cache_folder`.
        name: name of the entry, which determines its content.
    """
    path = cache_folder(kind) / name
    if path.exists() or _can_be_made(path.parent):
        return path
    return _instead_of(path.parent.parent) / kind / name


class _MadeMeanwhile(Exception):
    """Another process was faster."""


@contextmanager
def cache_entry(path: Path, *, is_made: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """Create a cache entry, a folder below `cache_folder`, atomically.

    Yields a temporary folder to write into; on any error it is removed and `path` stays unchanged.

    Args:
        path: of the entry.
        is_made: whether another process has made the entry meanwhile. That one is then kept: on a network file system,
            replacing files that another machine has mapped into memory would kill its process.

    Raises:
        CacheError: the entry cannot be written, or the body raised an OSError.
    """
    try:
        with atomic_folder(path) as folder:
            yield folder
            if is_made():
                raise _MadeMeanwhile
    except _MadeMeanwhile:
        pass
    except OSError as error:
        raise CacheError(
            f"the cache {path} cannot be written: {error.strerror or error}; make room there, or set {CACHE_VARIABLE} "
            "to a writable folder"
        ) from error


def _can_be_made(folder: Path) -> bool:
    there = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


@cache
def _instead_of(folder: Path) -> Path:
    """A private temporary folder of this user, the same for all processes of a run."""
    instead = Path(tempfile.gettempdir()) / f"aligngpt-{os.getuid() if hasattr(os, 'getuid') else getpass.getuser()}"
    try:
        instead.mkdir(mode=0o700, exist_ok=True)
        found = instead.lstat()
        # Another user may have created a folder of this name.
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
            instead = Path(tempfile.mkdtemp(prefix="aligngpt-"))
    except OSError as error:
        raise CacheError(
            f"neither the cache {folder} nor {instead} can be written: {error.strerror or error}; set "
            f"{CACHE_VARIABLE} to a writable folder"
        ) from error
    warn(f"the cache {folder} cannot be written; using {instead} instead. Set {CACHE_VARIABLE} to a writable folder")
    return instead
