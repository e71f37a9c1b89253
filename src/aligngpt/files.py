"""Files that are either there in full or not there at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears at `path` only once it was written in full.

    The content goes to a temporary file in the same folder, is synced to disk and renamed over `path`, so a kill
    or a full disk leaves either the old file or the new one. Missing parent folders are made.

    Args:
        path: where the file is to be.
        mode: `"w"` for UTF-8 text, `"wb"` for bytes.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is then unchanged.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Make a folder that appears at `path` only once everything in it was written.

    Yields a temporary folder beside `path`; on success it takes the place of `path` (an older folder there is
    replaced), on any error it is removed and `path` is left as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        os.chmod(temporary, 0o777 & ~_umask())
        yield temporary
        if target.exists():
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
            try:
                os.replace(target, old / target.name)
                os.replace(temporary, target)
            except BaseException:
                if os.path.lexists(old / target.name):
                    os.replace(old / target.name, target)
                os.rmdir(old)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sha256_of(file: BinaryIO) -> str:
    """The SHA-256 of what an open file holds from here on, in hexadecimal."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
