"""Atomic writing of files and folders: they appear complete or not at all."""

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
"""Errors with which file systems refuse to sync a folder."""

_cleared: set[str] = set()
"""Folders already searched for leftovers: once per process, because a folder of scores may hold many files."""


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that replaces `path` atomically on success.

    The content goes to a temporary file in the same folder, is synced to disk and renamed to `path`, and the folder is
    synced too: after the process was killed, a full disk or a power failure, `path` is either the old file or the new
    one. Missing parent folders are created; temporary files of dead processes there are removed.

    Args:
        path: the file to write.
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
    # Let the kernel apply the umask: reading it would mean changing it, for every thread.
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            _sync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Create a folder that replaces `path` atomically on success.

    Yields a temporary folder beside `path`. On success its content is synced to disk and it takes the place of `path`.
    An existing folder there is replaced in one step if the system can exchange two names; otherwise it is moved aside
    first, and if the process is killed at that moment, the next call puts it back. On any error the temporary folder is
    removed and `path` stays unchanged. Temporary files and folders of dead processes beside `path` are removed.

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
    # After an exchange, this is the old folder.
    remove(temporary)


def sha256_of(file: BinaryIO) -> str:
    """The hexadecimal SHA-256 of an open file, from its current position to the end."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False if the system or the file system cannot."""
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


def _sync(descriptor: int) -> None:
    """Write what is open to the disk itself: on macOS, `fsync` leaves it in the disk's own memory."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined, unused-ignore]
        return
    os.fsync(descriptor)


def _sync_tree(folder: Path) -> None:
    for where, _, names in os.walk(folder):
        for name in names:
            if os.path.isfile(path := os.path.join(where, name)):
                # Windows can only sync files that are open for writing.
                with open(path, "rb" if os.name == "posix" else "r+b") as file:
                    _sync(file.fileno())
        _sync_folder(where)


def _sync_folder(folder: str | Path) -> None:
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _sync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
