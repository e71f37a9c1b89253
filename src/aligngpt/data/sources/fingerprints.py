"""Fingerprints of a source's files, based on their content so that a copy has the same one."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.remote import RemotePath, content_hash
from aligngpt.data.sources.remote_store import content_of_state

STRETCHES, STRETCH = 16, 1 << 14
"""Number and size in bytes of the stretches hashed of a large file, evenly spaced from first to last byte."""

WHOLE = 4 << 20
"""Files of up to this many bytes are read in full: on a disk, that costs no more than 16 reads across a larger one."""

THREADS = 16
"""Number of files read in parallel: on network storage, most of the time is spent waiting."""

PARQUET_MARK, PARQUET_END = b"PAR1", 8
"""The mark at the end of a Parquet file, and the total size in bytes of the mark and the footer length before it."""


def files_fingerprint(files: Sequence[Path], folder: Path) -> str:
    """A SHA-256 of the files' names relative to their folder, their sizes, and part of their content.

    Files of up to 4 MiB are hashed in full. To avoid reading terabytes, only 16 stretches of 16 KiB are hashed of a
    larger file, plus the footer if it is Parquet. The footer has the size, position and extremes of each column of each
    row group, so that changed texts are almost always detected. A change is not detected if it was made in place, at
    the same length and between the stretches; in Parquet, it must also leave the column's extremes and its compressed
    size unchanged, while nothing in a tar file summarises its texts. A tar file that was packed again is detected if
    its packer records the time, as most do. The files' own modification times play no part. For an address, the
    store's version of each object (its ETag) stands for its content, so it differs from that of a copy on disk.

    Args:
        files: in order.
        folder: the folder that names are relative to.

    Raises:
        SourceError: a file cannot be read.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(min(THREADS, max(1, len(files)))) as pool:
        for line in pool.map(partial(_line, folder), files):
            digest.update(line)
    return digest.hexdigest()


def file_content(path: Path) -> str:
    """The SHA-256 of a file, cached per process until the file changes; of a remote one, see `content_hash`.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        state = path.stat()
        return _whole(path.absolute(), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error


@lru_cache(maxsize=64)
def _whole(path: Path, size: int, modified: int, changed: int, inode: int) -> str:
    return content_hash(path)


def _line(folder: Path, path: Path) -> bytes:
    if isinstance(path, RemotePath):
        return _remote_line(folder, path)
    try:
        state = path.stat()
        part = _content(path, state)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    name = Path(os.path.relpath(path, folder)).as_posix()
    return f"{name}\t{state.st_size}\t{part}\n".encode(errors="surrogateescape")


def _remote_line(folder: Path, path: RemotePath) -> bytes:
    try:
        state = path.pinned().state()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    return f"{path.relative_to(folder).as_posix()}\t{state.size}\t{content_of_state(state)}\n".encode()


def _content(path: Path, state: os.stat_result) -> str:
    # The inode change time (ctime), unlike the modification time, cannot be set.
    return _part_of(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)


@lru_cache(maxsize=1 << 16)
def _part_of(path: Path, size: int, modified: int, changed: int, inode: int) -> str:
    """The SHA-256 of part of a file, cached per process until the file changes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= WHOLE:
            digest.update(file.read())
            return digest.hexdigest()
        for start in np.linspace(0, size - STRETCH, STRETCHES, dtype=np.int64).tolist():
            file.seek(start)
            digest.update(file.read(STRETCH))
        digest.update(_parquet_footer(file, size))
    return digest.hexdigest()


def _parquet_footer(file: BinaryIO, size: int) -> bytes:
    """The footer of a Parquet file; empty for any other file."""
    file.seek(size - PARQUET_END)
    end = file.read(PARQUET_END)
    length = int.from_bytes(end[:4], "little")
    if not end.endswith(PARQUET_MARK) or length > size - PARQUET_END:
        return b""
    file.seek(size - PARQUET_END - length)
    return file.read(length)
