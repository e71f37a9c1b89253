"""Misspelt names, and what may have been meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is spelt most like `name`, ignoring case; None where none is much like it."""
    spelt = {other.lower(): other for other in known}
    return next((spelt[match] for match in get_close_matches(name.lower(), spelt, n=1)), None)
