"""Read the members of a tar file up to where it is broken."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aligngpt.data.sources.base import SourceError

CHUNK = 2048 * tarfile.BLOCKSIZE

_ERRORS = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, MemoryError, RecursionError)
"""What tarfile raises for damaged headers; the last three for a long name of absurd size, and for many in a row."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar file.

    Attributes:
        name: as written in the tar file; never a path on disk.
        offset: first byte of its content.
        size: size of its content in bytes.
        file: the tar file, open while its members are read.
        is_link: whether it is a link to something that is not an earlier member, and so has no content.
    """

    name: str
    offset: int
    size: int
    file: BinaryIO
    is_link: bool = False

    def read(self) -> bytes:
        """Its content."""
        self.file.seek(self.offset)
        return self.file.read(self.size)


@dataclass(frozen=True, slots=True)
class BrokenTar:
    """The rest of a tar file cannot be read; `reason` says why and where."""

    reason: str


def read_members(path: Path, stop: int | None = None) -> Iterator[Member | BrokenTar]:
    """Yield the files and links in an uncompressed tar file, in order; if it is broken, a final `BrokenTar`.

    A hard link to an earlier member has that member's content, under its own name. Concatenated tar files are read one
    after the other.

    Args:
        path: the file.
        stop: do not read headers from this byte on.

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
        earlier = _Earlier(path)
        while start is not None:
            file.seek(start)
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    while (member := tar.next()) is not None:
                        # tarfile would keep every member it has seen.
                        tar.members.clear()  # type: ignore[attr-defined]
                        if stop is not None and member.offset >= stop:
                            return
                        if member.islnk() or member.issym():
                            yield earlier.linked(member, file)
                            continue
                        if not 0 <= member.size <= size - member.offset_data:
                            yield BrokenTar(f"{path} is cut short in {member.name!r}, at byte {member.offset}")
                            return
                        if member.isreg() and not member.issparse():
                            found = Member(member.name, member.offset_data, member.size, file)
                            earlier.add(found)
                            yield found
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
            except _ERRORS as error:
                why = str(error) or type(error).__name__
                yield BrokenTar(f"{path} is not a complete, uncompressed tar file, at byte {file.tell()}: {why}")
                return


class _Earlier:
    """The members before a link, by name. They are kept, and the headers before the first link read again, only if
    there is one.

    Args:
        path: the tar file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] | None = None

    def add(self, member: Member) -> None:
        """Note a member that was read."""
        if self._places is not None and not member.is_link:
            self._places[_plain(member.name)] = (member.offset, member.size)

    def linked(self, link: tarfile.TarInfo, file: BinaryIO) -> Member:
        """The member that a link stands for; one with `is_link` if it is not a hard link to an earlier member."""
        if not link.islnk():
            return Member(link.name, link.offset_data, 0, file, is_link=True)
        if self._places is None:
            self._places = {}
            for member in read_members(self._path, stop=link.offset):
                if isinstance(member, Member):
                    self.add(member)
        if (place := self._places.get(_plain(link.linkname))) is None:
            return Member(link.name, link.offset_data, 0, file, is_link=True)
        found = Member(link.name, *place, file)
        self.add(found)
        return found


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _not_zero(file: BinaryIO, at: int) -> int | None:
    """The first block at or after a byte that is not all zeros; None if only zeros follow."""
    file.seek(at)
    while chunk := file.read(CHUNK):
        if rest := chunk.lstrip(tarfile.NUL):
            return at + (len(chunk) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        at += len(chunk)
    return None
