"""Compressed JSON, JSON lines and CSV files, decompressed once into the cache."""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.remote import RemotePath
from aligngpt.data.sources.text_files import packed_with

CHUNK = 1 << 20

HEAD = 1024
"""Bytes by which a compressed archive is recognised before it is decompressed."""

# Those of pyarrow are OSError and ValueError.
_ERRORS = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError)


def _zstd(path: Path | BinaryIO) -> Any:
    # It takes long to import.
    import pyarrow

    return pyarrow.CompressedInputStream(path if isinstance(path, io.IOBase) else pyarrow.OSFile(str(path)), "zstd")


# The caller closes what they open.
_OPEN: dict[str, Callable[[Any], Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open, "zstd": _zstd}


def can_decompress(head: bytes) -> bool:
    """Whether a file is compressed in a way that is read, by its first bytes."""
    packed = packed_with(head)
    return packed is not None and packed[0] in _OPEN


def name_within(path: Path) -> str:
    """The name of a compressed file without the suffix of the compression."""
    return path.stem if path.suffix.lower() in (".gz", ".zst", ".zstd", ".bz2", ".xz") else path.name


def decompress(path: Path, out: Path) -> str | None:
    """Decompress a file of text.

    Args:
        path: the compressed file.
        out: the file to write.

    Returns:
        What is wrong, if only the beginning of the file can be decompressed; its last, incomplete line is left out.

    Raises:
        SourceError: it is no compressed file, it cannot be read, nothing of it can be decompressed, or it contains a
            tar or Parquet file.
    """
    with path.open("rb") as file:
        packed = packed_with(file.read(8))
    if packed is None or packed[0] not in _OPEN:
        raise SourceError(f"{path} is not compressed with {', '.join(_OPEN)}")
    failed: list[Exception] = []
    written = 0
    with out.open("wb") as text:
        for chunk in _chunks(path, _OPEN[packed[0]], failed):
            if not written:
                _check_is_text(path, chunk[:HEAD], packed)
            text.write(chunk)
            written += len(chunk)
    if not failed:
        return None
    _end_at_line(out)
    if not out.stat().st_size:
        raise SourceError(f"{path} is damaged or cut short: nothing of it can be decompressed ({failed[0]})")
    return f"{path} is damaged or cut short after {written} decompressed bytes; the rest is lost ({failed[0]})"


def _chunks(path: Path, opened: Callable[[Any], Any], failed: list[Exception]) -> Iterator[bytes]:
    """Yield the content of a compressed file; if it is broken, up to there, and add the error to `failed`."""
    size, read = CHUNK, 0
    while size:
        try:
            with _source(path) as source, opened(source) as stream:
                left = read
                while left and (passed := stream.read(min(left, CHUNK))):
                    left -= len(passed)
                while chunk := stream.read(size):
                    read += len(chunk)
                    yield chunk
            return
        except _ERRORS as error:
            if isinstance(error, OSError) and error.errno is not None:
                # That it cannot be read now says nothing about its content.
                raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
            # The readers drop what precedes the fault in the same chunk, so that part is read in smaller ones.
            failed[:] = [error]
            size //= 32


def _source(path: Path) -> AbstractContextManager[Any]:
    """What a reader opens: a path, or an object that is open already."""
    return path.open("rb") if isinstance(path, RemotePath) else nullcontext(path)


def _check_is_text(path: Path, head: bytes, packed: tuple[str, str]) -> None:
    is_tar = False
    if len(head) >= tarfile.BLOCKSIZE:
        try:
            tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
            is_tar = True
        except tarfile.TarError:
            pass
    if is_tar or head.startswith(b"PAR1"):
        what = "tar" if is_tar else "Parquet"
        raise SourceError(
            f"{path} is a {what} file compressed with {packed[0]}; decompress it ({packed[1]}), because its images are "
            "read in any order"
        )


def _end_at_line(path: Path) -> None:
    """Remove an incomplete last line; an array is left as it is, since its reader says where it breaks off."""
    with path.open("rb+") as file:
        if file.read(HEAD).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            return
        end = file.seek(0, 2)
        while end:
            start = max(0, end - CHUNK)
            file.seek(start)
            if (at := file.read(end - start).rfind(b"\n")) >= 0:
                end = start + at + 1
                break
            end = start
        file.truncate(end)
