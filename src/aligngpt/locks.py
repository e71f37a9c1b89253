"""Locks that let one process at a time write into an output folder and tell a second one who holds it."""

import errno
import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from aligngpt.errors import AlignGPTError

LOCK_FILE = ".lock"
"""The file that the kernel lock is on. It stays behind, empty and harmless: only a live process can hold the lock."""

MARKER_FILE = ".lock.held"
"""The lock itself on file systems without kernel locks: it exists while its process holds the folder."""

OWNER_FILE = ".lock.owner"
"""Owner of the folder, only for the error message: process id, host, verb and time, in JSON."""

_NO_KERNEL_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}

_held: dict[tuple[int, str], tuple[BaseFileLock, int]] = {}
"""By process and folder: the lock, and how often it was entered, because a nested run shares its folder.

The process is part of the key because a forked child has a copy of this but owns nothing.
"""
_guard = threading.Lock()


def _new_guard() -> None:
    global _guard
    _guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_guard)


class FolderInUse(AlignGPTError):
    """Another process is writing into an output folder."""


@contextmanager
def owned_folder(folder: str | Path, verb: str) -> Iterator[None]:
    """Lock an output folder while the body runs; the folder is created if it is missing.

    The owner is the process: it may enter its own folder again, from any thread. Of a group of processes started by a
    launcher, only the main one enters. The lock is a kernel lock, which is released whenever its owner ends, even by
    `kill -9`. On file systems without such locks it is a marker file, which is taken over if its process on this host
    is dead. Three hidden files are used: `.lock`, `.lock.owner` and `.lock.held`; they may be removed whenever no
    process is writing into the folder.

    Args:
        folder: the output folder.
        verb: verb of the process, as in `train`, for the error message in the other process.

    Raises:
        FolderInUse: another process owns the folder; names its process id, its host and since when.
        AlignGPTError: the folder cannot be created or written, such as where a file is in its place.
        OSError: the disk is full.
    """
    folder = Path(folder)
    _make(folder)
    key = (os.getpid(), os.path.realpath(folder))
    with _guard:
        lock, entered = _held[key] if key in _held else (_acquire(folder, verb), 0)
        _held[key] = lock, entered + 1
    try:
        yield
    finally:
        # A child forked in the body gets here too, but the parent keeps the folder.
        if key[0] == os.getpid():
            with _guard:
                lock, entered = _held.pop(key)
                if entered > 1:
                    _held[key] = lock, entered - 1
                else:
                    _release(lock, folder)


@contextmanager
def folder_in_turn(folder: str | Path, verb: str, *, patience: float) -> Iterator[None]:
    """Like `owned_folder`, but wait for a process that holds the folder for a moment only.

    Args:
        folder, verb: see `owned_folder`.
        patience: seconds to wait.

    Raises:
        FolderInUse: another process has held it all that time.
        AlignGPTError, OSError: see `owned_folder`.
    """
    give_up = time.monotonic() + patience
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(owned_folder(folder, verb))
                break
            except FolderInUse:
                if time.monotonic() > give_up:
                    raise
            # At random, so that processes that start together do not meet again.
            time.sleep(random.uniform(0.01, 0.1))
        yield


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        place = next(one for one in (folder, *folder.parents) if one.exists())
        raise AlignGPTError(
            f"the output folder {folder} cannot be created: {place} is a file; choose another output folder"
        ) from error
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> OSError | AlignGPTError:
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return error
    return AlignGPTError(
        f"the output folder {folder} cannot be written ({error.strerror}); choose another output folder or change its "
        "permissions"
    )


def _acquire(folder: Path, verb: str) -> BaseFileLock:
    lock: BaseFileLock = FileLock(folder / LOCK_FILE, timeout=0, thread_local=False)
    try:
        try:
            lock.acquire()
        except (OSError, NotImplementedError) as error:
            unsupported = isinstance(error, NotImplementedError) or error.errno in _NO_KERNEL_LOCKS
            if isinstance(error, Timeout):
                raise
            if not unsupported:
                assert isinstance(error, OSError)
                raise _not_writable(folder, error) from error
            lock = SoftFileLock(folder / MARKER_FILE, timeout=0, thread_local=False)
            lock.acquire()
    except Timeout:
        raise FolderInUse(
            f"{folder} is in use by {_owner(folder)}; let it finish or stop it before `aligngpt {verb}` starts there, "
            "or choose another folder" + _how_to_free(folder)
        ) from None
    # The owner file only serves the message: a full disk must not stop the work here.
    with suppress(OSError):
        _write_owner(folder, verb)
    return lock


def _release(lock: BaseFileLock, folder: Path) -> None:
    # The folder may have been removed, and the lock files with it.
    with suppress(OSError):
        (folder / OWNER_FILE).unlink(missing_ok=True)
    with suppress(OSError):
        lock.release()


def _write_owner(folder: Path, verb: str) -> None:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "verb": verb, "since": since}
    (folder / OWNER_FILE).write_text(json.dumps(owner), encoding="utf-8")


def _owner(folder: Path) -> str:
    try:
        told = json.loads((folder / OWNER_FILE).read_text(encoding="utf-8"))
        return f"process {told['pid']} on {told['host']} (`aligngpt {told['verb']}`, since {told['since']})"
    except (OSError, ValueError, TypeError, KeyError):
        # The owner has only just taken the lock and not yet written the file.
        return "another process"


def _how_to_free(folder: Path) -> str:
    marker = folder / MARKER_FILE
    if not marker.exists():
        return ""
    return f" (if that process is dead, remove {marker}: this file system does not support kernel locks)"
