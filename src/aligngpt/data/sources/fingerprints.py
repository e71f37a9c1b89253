"""Whether the files of a source are still the same: told by their content, which a copy has too."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from aligngpt.data.sources.base import SourceError

STRETCHES, STRETCH = 16, 1 << 14
"""What is looked at of a large file: so many stretches of so many bytes, evenly from first to last."""

WHOLE = 4 << 20
"""Files of up to so many bytes are read in full: on a disk that costs no more than 16 places in a larger one."""

THREADS = 16
"""Files looked at at a time: on network storage most of it is waiting."""

PARQUET_MARK, PARQUET_END = b"PAR1", 8
"""What a Parquet file ends with, and the bytes of it and of the length of the footer before it."""


def files_fingerprint(files: Sequence[Path], folder: Path) -> str:
    """A SHA-256 of files' names, wherever their folder is, of their sizes, and of a part of their content.

    Of a file of up to 4 MiB the part is all of it. A terabyte is not read for it: of a larger file it is 16 stretches
    of 16 KiB and, of Parquet, the footer, which has the size, the place and the extremes of each column of each row
    group, so that other texts are almost always seen. Not seen is what was written in place and at the same length
    between the stretches: in Parquet if it is also no extreme of its column and compresses to the same size; in a tar,
    whose texts nothing sums up, wherever it lies. A tar that was packed anew is seen if its packer notes the time, as
    most do. The files' own times of change play no part.

    Args:
        files: in order.
        folder: what the names are told from.

    Raises:
        SourceError: a file cannot be read.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(min(THREADS, max(1, len(files)))) as pool:
        for line in pool.map(partial(_line, folder), files):
            digest.update(line)
    return digest.hexdigest()


def _line(folder: Path, path: Path) -> bytes:
    try:
        state = path.stat()
        part = _content(path, state)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    name = Path(os.path.relpath(path, folder)).as_posix()
    return f"{name}\t{state.st_size}\t{part}\n".encode(errors="surrogateescape")


def _content(path: Path, state: os.stat_result) -> str:
    # The time of the last change of the entry, unlike that of the content, cannot be set.
    return _part_of(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)


@lru_cache(maxsize=1 << 16)
def _part_of(path: Path, size: int, modified: int, changed: int, inode: int) -> str:
    """The SHA-256 of a part of a file, worked out once in a process while the file stays as it is."""
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
    """The footer of a Parquet file; nothing of another file."""
    file.seek(size - PARQUET_END)
    end = file.read(PARQUET_END)
    length = int.from_bytes(end[:4], "little")
    if not end.endswith(PARQUET_MARK) or length > size - PARQUET_END:
        return b""
    file.seek(size - PARQUET_END - length)
    return file.read(length)
