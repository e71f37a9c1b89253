"""The level in a field `level`, which counts from 1, beside `similarity`, which counts from 0 or is a score."""

from typing import Any


def set_level(fields: dict[str, Any], level: object) -> None:
    """Store a level 1…N as `similarity`; tables with missing levels may hold it as a float.

    A `similarity` that is a float is a score, and becomes `score` unless there is one.

    Raises:
        ValueError: it is not a level, or `similarity` is another one; the message says so.
    """
    whole = not isinstance(level, bool) and isinstance(level, int | float) and level == level and level % 1 == 0
    if not whole or level < 1:  # type: ignore[operator]
        raise ValueError(f"`level` must be a level 1…N, found {level!r}")
    given = fields.get("similarity")
    if isinstance(given, float):
        fields.setdefault("score", given)
    elif given is not None and given != level - 1:  # type: ignore[operator]
        raise ValueError(f"`level` is {level} (from 1) and `similarity` {given!r} (from 0); keep one of them")
    fields["similarity"] = int(level) - 1  # type: ignore[call-overload]
