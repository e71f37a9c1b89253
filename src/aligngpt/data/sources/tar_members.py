"""Read the members of a tar file up to where it is broken."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aligngpt.data.sources.base import SourceError

CHUNK = 2048 * tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar file.

    Attributes:
        name: as written in the tar file; never a path on disk.
        offset: first byte of its content.
        size: size of its content in bytes.
        file: the tar file, open while its members are read.
    """

    name: str
    offset: int
    size: int
    file: BinaryIO

    def read(self) -> bytes:
        """Its content."""
        self.file.seek(self.offset)
        return self.file.read(self.size)


@dataclass(frozen=True, slots=True)
class BrokenTar:
    """The rest of a tar file cannot be read; `reason` says why and where."""

    reason: str


def read_members(path: Path) -> Iterator[Member | BrokenTar]:
    """Yield the regular files in an uncompressed tar file, in order; if it is broken, a final `BrokenTar`.

    Concatenated tar files are read one after the other.

    Raises:
        SourceError: the file cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    with file:
        size = file.seek(0, 2)
        start: int | None = 0
        while start is not None:
            file.seek(start)
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    while (member := tar.next()) is not None:
                        # tarfile would keep every member it has seen.
                        tar.members.clear()  # type: ignore[attr-defined]
                        if not 0 <= member.size <= size - member.offset_data:
                            yield BrokenTar(f"{path} is cut short in {member.name!r}, at byte {member.offset}")
                            return
                        if member.isreg() and not member.issparse():
                            yield Member(member.name, member.offset_data, member.size, file)
                    # tarfile stops as silently at a broken header as at the end.
                    end = tar.offset
                    file.seek(end)
                    header = file.read(tarfile.BLOCKSIZE)
                if not header:
                    yield BrokenTar(f"{path} is cut short: there is no end mark at byte {end}")
                    return
                if header.strip(tarfile.NUL):
                    yield BrokenTar(f"{path} has a broken header at byte {end}; what follows it cannot be read")
                    return
                start = _not_zero(file, end)
            except SourceError:
                raise  # A lost connection or a changed object, which is no fault in the file.
            except (tarfile.TarError, OSError, ValueError, EOFError) as error:
                yield BrokenTar(f"{path} is not a complete, uncompressed tar file, at byte {file.tell()}: {error}")
                return


def _not_zero(file: BinaryIO, at: int) -> int | None:
    """The first block at or after a byte that is not all zeros; None if only zeros follow."""
    file.seek(at)
    while chunk := file.read(CHUNK):
        if rest := chunk.lstrip(tarfile.NUL):
            return at + (len(chunk) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        at += len(chunk)
    return None
