"""Check from its beginning that a file is text of the expected kind, so that errors say what another file is."""

from itertools import islice
from pathlib import Path

from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.byte_ranges import Line, read_lines, text_start
from aligngpt.data.sources.json_objects import HEAD, object_keys
from aligngpt.data.sources.mistaken_files import mistaken_for

FIRST_LINES = 10
"""If this many first lines all fail, the file is in another encoding; a single bad byte costs only one record."""

_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"PK\x03\x04": ("zip", "unzip"),
}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def packed_with(head: bytes) -> tuple[str, str] | None:
    """The program that compressed a file and the command to decompress it, by its first bytes; None if uncompressed."""
    return next((names for magic, names in _PACKED.items() if head.startswith(magic)), None)


def check_kind(path: Path, head: bytes) -> None:
    """Reject a file that is compressed, in UTF-16, a web page or a Git LFS pointer.

    Raises:
        SourceError: it is one of these; the message says which, and what to do.
    """
    if packed := packed_with(head):
        raise SourceError(f"{path} is compressed with {packed[0]}; decompress it ({packed[1]})")
    if what := mistaken_for(head):
        raise SourceError(f"{path} {what}")
    if head.startswith(_UTF_16):
        raise SourceError(f"{path} is not UTF-8 in line 1; save it as UTF-8")


def check_lines(path: Path) -> None:
    """Reject a file of lines that `check_kind` rejects, is in another encoding, or is a single JSON object.

    Raises:
        SourceError: it is one of these, or cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    check_kind(path, head)
    lines = check_encoding(path, text_start(path))
    if lines and (keys := object_keys(head, lines)):
        shown = ", ".join(keys[:8]) + (", …" if len(keys) > 8 else "")
        raise SourceError(
            f"{path} is one JSON object with the keys {shown}; expected an array, or one record per line. Save only "
            "the list of records in it"
        )


def one_object_keys(path: Path) -> list[str]:
    """The keys of a file that is one JSON object, as far as its beginning has them; empty for any other file.

    Raises:
        SourceError: the file cannot be read, or is not UTF-8.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    lines = check_encoding(path, text_start(path))
    return object_keys(head, lines) if lines else []


def check_encoding(path: Path, start: int, above: int = 0) -> list[Line]:
    """The first non-blank lines of a file from a byte on, at least one of which must be UTF-8.

    Args:
        path: the file.
        start: first byte of a line.
        above: number of lines before it.

    Raises:
        SourceError: none of them is UTF-8.
    """
    lines = list(islice((line for line in read_lines(path, start) if line.content.strip()), FIRST_LINES))
    if lines and not any(_is_text(line) for line in lines):
        raise SourceError(f"{path} is not UTF-8 in line {above + lines[0].number}; save it as UTF-8")
    return lines


def _is_text(line: Line) -> bool:
    try:
        line.content.decode()
    except UnicodeDecodeError:
        return False
    return True
