"""Files that are either there in full or not there at all."""

import ctypes
import errno
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from aligngpt.leftovers import remove, remove_leftovers, temporary_beside

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.EBADF}
"""What file systems without such a thing answer when a folder is to be synced."""

_cleared: set[str] = set()
"""Folders in which leftovers were looked for: once a process, since a folder may have as many files as there are parts
of scores."""


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears at `path` only once it was written in full.

    The content goes to a temporary file in the same folder, is synced to disk and renamed over `path`, and the folder
    is synced too: a kill, a full disk or a power failure leaves either the old file or the new one. Missing parent
    folders are made; temporary files that dead processes left there are removed.

    Args:
        path: where the file is to be.
        mode: `"w"` for UTF-8 text, `"wb"` for bytes.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is then unchanged.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if (folder := os.path.abspath(target.parent)) not in _cleared:
        _cleared.add(folder)
        remove_leftovers(target)
    temporary = temporary_beside(target)
    # The kernel applies the umask: to ask for it is to change it, for every thread.
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Make a folder that appears at `path` only once everything in it was written.

    Yields a temporary folder beside `path`. On success all that is in it is synced to disk and it takes the place of
    `path`; an older folder there is replaced in one step where the system can exchange two names. Elsewhere it is moved
    aside first, and a kill at that moment leaves it to the next call, which puts it back. On any error the temporary
    folder is removed and `path` is left as it was. What dead processes left beside `path` is removed.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is then unchanged.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    temporary = temporary_beside(target)
    temporary.mkdir()
    try:
        yield temporary
        _sync_tree(temporary)
        if not os.path.lexists(target):
            os.replace(temporary, target)
        elif not _exchange(temporary, target):
            _replace_in_two_steps(temporary, target)
    except BaseException:
        remove(temporary)
        raise
    _sync_folder(target.parent)
    # After an exchange it is the older folder.
    remove(temporary)


def sha256_of(file: BinaryIO) -> str:
    """The SHA-256 of what an open file holds from here on, in hexadecimal."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other)
    return bool(rename(*names, ctypes.c_uint(_RENAME_EXCHANGE)) == 0)


def _replace_in_two_steps(temporary: Path, target: Path) -> None:
    old = temporary_beside(target, old=True)
    os.replace(target, old)
    try:
        os.replace(temporary, target)
    except BaseException:
        os.replace(old, target)
        raise
    remove(old)


def _sync_tree(folder: Path) -> None:
    for where, _, names in os.walk(folder):
        for name in names:
            if os.path.isfile(path := os.path.join(where, name)):
                # Windows syncs only what is open for writing.
                with open(path, "rb" if os.name == "posix" else "r+b") as file:
                    os.fsync(file.fileno())
        _sync_folder(where)


def _sync_folder(folder: str | Path) -> None:
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
