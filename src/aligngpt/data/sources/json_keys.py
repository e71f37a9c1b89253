"""JSON objects that have a key twice, of which a decoder keeps the last value and drops the others in silence."""

import json
from typing import Any


class RepeatedKeys(dict[str, Any]):
    """A JSON object that has a key more than once, as far as its last values go."""


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a decoder's pairs, for `object_pairs_hook`; one with a key twice is a `RepeatedKeys`."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else RepeatedKeys(found)


DECODER = json.JSONDecoder(object_pairs_hook=object_of)
"""Reads JSON in which keys may be repeated."""
