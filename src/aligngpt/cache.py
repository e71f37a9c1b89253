"""Where what was worked out once is kept: a folder that may be removed at any time, and is then filled anew."""

import getpass
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_folder
from aligngpt.progress import console

CACHE_VARIABLE = "ALIGNGPT_CACHE"


class CacheError(AlignGPTError):
    """The cache folder cannot be written."""


def cache_folder(kind: str) -> Path:
    """The folder that entries of a kind are kept in; nothing is made.

    It lies in `$ALIGNGPT_CACHE`, else in `$XDG_CACHE_HOME/aligngpt`, else in `~/.cache/aligngpt`.

    Args:
        kind: what is kept there; a folder name such as `samples`.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser().absolute() / kind
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths passed over.
    base = Path(shared) if os.path.isabs(shared) else Path("~/.cache").expanduser()
    return base / "aligngpt" / kind


def entry_path(kind: str, name: str) -> Path:
    """Where an entry is, or is to be made: in `cache_folder`, or beside other temporary files where that is read-only.

    Entries that a read-only cache has are used. What is made beside the temporary files is found again until the
    system removes them; the first time a line says so.

    Args:
        kind: as for `cache_folder`.
        name: of the entry, which decides its content.
    """
    path = cache_folder(kind) / name
    if path.exists() or _can_be_made(path.parent):
        return path
    return _instead_of(path.parent.parent) / kind / name


@contextmanager
def cache_entry(path: Path) -> Iterator[Path]:
    """Make an entry, a folder below `cache_folder`, that appears only once everything in it was written.

    Yields a temporary folder to write into; on any error it is removed and `path` is left as it was.

    Raises:
        CacheError: the entry cannot be written. An OSError within the body is taken for this too.
    """
    try:
        with atomic_folder(path) as folder:
            yield folder
    except OSError as error:
        raise CacheError(
            f"the cache {path} cannot be written: {error.strerror or error}; make room there, or set {CACHE_VARIABLE} "
            "to a folder that can be written"
        ) from error


def _can_be_made(folder: Path) -> bool:
    there = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


@cache
def _instead_of(folder: Path) -> Path:
    """A folder of this user alone, the same for all processes of a run."""
    instead = Path(tempfile.gettempdir()) / f"aligngpt-{os.getuid() if hasattr(os, 'getuid') else getpass.getuser()}"
    try:
        instead.mkdir(mode=0o700, exist_ok=True)
        found = instead.lstat()
        # Anyone may have made a folder of this name.
        if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
            instead = Path(tempfile.mkdtemp(prefix="aligngpt-"))
    except OSError as error:
        raise CacheError(
            f"neither the cache {folder} nor {instead} can be written: {error.strerror or error}; set "
            f"{CACHE_VARIABLE} to a folder that can"
        ) from error
    console.print(
        f"warning: the cache {folder} cannot be written; {instead} is used instead. Set {CACHE_VARIABLE} to a folder "
        "that can",
        soft_wrap=True,
        highlight=False,
    )
    return instead
