"""What a file of text is, told from its beginning, so that one that is something else is named as what it is."""

import json
from itertools import islice
from pathlib import Path

from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.byte_ranges import Line, read_lines, text_start
from aligngpt.data.sources.mistaken_files import mistaken_for

FIRST_LINES = 10
"""A file whose first lines all fail is in another encoding; one bad byte further on costs a record."""

HEAD = 1 << 16

_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"PK\x03\x04": ("zip", "unzip"),
}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_RECORD_FIELDS = frozenset(
    [
        "answer",
        "caption",
        "conversations",
        "file_name",
        "image",
        "messages",
        "question",
        "response",
        "similarity",
        "text",
        "texts",
        "TEXT",
    ]
)
_decode = json.JSONDecoder().raw_decode


def packed_with(head: bytes) -> tuple[str, str] | None:
    """The program that packed a file and the command that unpacks it, by its first bytes; None for another file."""
    return next((names for magic, names in _PACKED.items() if head.startswith(magic)), None)


def check_kind(path: Path, head: bytes) -> None:
    """Refuse a file that is packed, in UTF-16, a web page or a Git LFS pointer.

    Raises:
        SourceError: it is one of these; the message says which, and what to do.
    """
    if packed := packed_with(head):
        raise SourceError(f"{path} is packed with {packed[0]}; unpack it ({packed[1]})")
    if what := mistaken_for(head):
        raise SourceError(f"{path} {what}")
    if head.startswith(_UTF_16):
        raise SourceError(f"{path} is not UTF-8 in line 1; save it as UTF-8")


def check_lines(path: Path) -> None:
    """Refuse a file of lines that is in another encoding, or is one JSON object rather than one a line.

    Raises:
        SourceError: it is so, or cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    check_kind(path, head)
    lines = check_encoding(path, text_start(path))
    if lines and (keys := _one_object(head, lines)):
        shown = ", ".join(keys[:8]) + (", …" if len(keys) > 8 else "")
        raise SourceError(
            f"{path} is one JSON object with the keys {shown}; expected an array, or a record a line. Save the list "
            "of records that is in it"
        )


def check_encoding(path: Path, start: int, above: int = 0) -> list[Line]:
    """The first lines of a file from a byte on, of which at least one must be text.

    Args:
        path: the file.
        start: first byte of a line.
        above: how many lines stand before it.

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


def _one_object(head: bytes, lines: list[Line]) -> list[str]:
    """The keys of the one object that a file is, as far as its head tells; none when it may be a record a line."""
    first = lines[0].content.decode(errors="replace").strip()
    if not first.startswith("{"):
        return []
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return _keys(head.decode("utf-8-sig", errors="replace").lstrip(), beyond=len(first))
    # A whole record is in the first line: it is the file's only one, and holds tables or records.
    nests = isinstance(value, dict) and any(
        isinstance(part, dict) or (isinstance(part, list) and part and isinstance(part[0], dict))
        for part in value.values()
    )
    return list(value) if nests and len(lines) == 1 and not _RECORD_FIELDS & value.keys() else []


def _keys(text: str, beyond: int) -> list[str]:
    """The keys of an object that goes on behind a character; none when there it is broken or ended."""
    keys: list[str] = []
    at = 1
    while True:
        at = _skip(text, at)
        if at >= len(text):
            return keys
        try:
            key, at = _decode(text, at)
            at = _skip(text, at)
            if not isinstance(key, str) or text[at : at + 1] != ":":
                return []
            keys.append(key)
            _, at = _decode(text, _skip(text, at + 1))
        except json.JSONDecodeError as error:
            # The head of a file ends anywhere, so its last value cannot be told from a broken one.
            is_cut = len(text) >= HEAD // 4 and (error.msg.startswith("Unterminated") or error.pos >= len(text) - 16)
            return keys if is_cut or error.pos >= len(text) else []
        except (ValueError, RecursionError):
            return []
        at = _skip(text, at)
        if text[at : at + 1] == "}":
            return keys if at >= beyond and not text[at + 1 :].strip() else []
        if text[at : at + 1] != ",":
            return keys if at >= len(text) else []
        at += 1


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
