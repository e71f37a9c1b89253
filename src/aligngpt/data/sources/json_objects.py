"""Tell a file that is one JSON object, such as COCO's, from one with a record per line, by its beginning."""

import json

from aligngpt.data.sources.byte_ranges import Line

HEAD = 1 << 16
"""Bytes of the beginning that are looked at."""

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


def object_keys(head: bytes, lines: list[Line]) -> list[str]:
    """The keys, as far as in its head, of a file that is one JSON object; empty if it may be one record per line."""
    first = lines[0].content.decode(errors="replace").strip()
    if not first.startswith("{"):
        return []
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return _keys(head.decode("utf-8-sig", errors="replace").lstrip(), beyond=len(first))
    # The first line is a complete object. It is not a record if it is the file's only line and holds tables or records.
    nests = isinstance(value, dict) and any(
        isinstance(part, dict) or (isinstance(part, list) and part and isinstance(part[0], dict))
        for part in value.values()
    )
    return list(value) if nests and len(lines) == 1 and not _RECORD_FIELDS & value.keys() else []


def _keys(text: str, beyond: int) -> list[str]:
    """The keys of an object that continues after the character `beyond`; empty if it is broken or ends before that."""
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
            # The head of a file may end anywhere, so its last value cannot be distinguished from a broken one.
            is_cut = len(text) >= HEAD // 4 and (error.msg.startswith("Unterminated") or error.pos >= len(text) - 16)
            # A string does not extend over lines, so in several of them, only the end of the file leaves one open.
            is_cut |= error.msg.startswith("Unterminated") and len(text.rstrip()) > beyond
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
