"""JSON objects with duplicate keys, of which a decoder silently keeps only the last value."""

import json
from typing import Any


class RepeatedKeys(dict[str, Any]):
    """A JSON object with duplicate keys; it holds the last value of each key."""


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object from a decoder's pairs, as `object_pairs_hook`; a `RepeatedKeys` if a key is duplicated."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else RepeatedKeys(found)


REPEATED_KEY = "the record has a duplicate key; keep one of its values"

DECODER = json.JSONDecoder(object_pairs_hook=object_of)
"""Decodes JSON and returns a `RepeatedKeys` for an object with duplicate keys."""


def decoded(content: bytes) -> object:
    """The value of a JSON file, which may begin with a byte order mark; see `DECODER`.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.
    """
    return json.loads(content, object_pairs_hook=object_of)
