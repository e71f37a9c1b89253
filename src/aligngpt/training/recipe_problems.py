"""What is wrong with a recipe, in words: the fields, the values found, and similar names."""

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

LONGEST_VALUE = 60
"""Longer values are not repeated in a message."""


def describe_problems(error: ValidationError, root: type[BaseModel]) -> str:
    """All problems of a recipe, each with its field, in one line.

    Args:
        error: the error from validating `root`.
        root: the class of the whole recipe.
    """
    return "; ".join(
        f"{_field(problem['loc']) or 'recipe'}: {_what_is_wrong(problem, root)}" for problem in error.errors()
    )


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest in spelling to `name`, ignoring case; None if none is close."""
    spelt = {other.lower(): other for other in known}
    return next((spelt[match] for match in get_close_matches(name.lower(), spelt, n=1)), None)


def _field(location: tuple[int | str, ...]) -> str:
    """The path of a field, without the kind of data (see `DataRecipe`) at its end."""
    parts = [str(part) for part in location]
    return ".".join(parts[:-1] if parts[-2:] == ["data", "file"] else parts)


def _what_is_wrong(problem: ErrorDetails, root: type[BaseModel]) -> str:
    kind, value = problem["type"], problem["input"]
    if kind == "value_error":
        # Raised by our own validators, whose messages say what was found.
        return problem["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        *sections, name = (str(part) for part in problem["loc"])
        known = _fields(root, sections)
        meant = closest(name, known)
        return f"unknown; did you mean {meant}?" if meant else f"unknown; known fields: {', '.join(known)}"
    if kind == "missing" or len(repr(value)) > LONGEST_VALUE:
        return problem["msg"]
    if value is None:
        return "has no value, enter one"
    meant = None
    if kind == "literal_error" and isinstance(value, str):
        meant = closest(value, problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", "))
    return f"{problem['msg']}, found {value!r}" + (f"; did you mean {meant}?" if meant else "")


def _fields(section: type[BaseModel], below: Sequence[str]) -> list[str]:
    """The field names of the section at the end of this path."""
    for name in below:
        # Within a list of sections, the path also has indices and the kind of data.
        if name in section.model_fields:
            section = next(_sections(section.model_fields[name].annotation))
    return list(section.model_fields)


def _sections(kind: Any) -> Iterator[type[BaseModel]]:
    """The sections in a type, which may be a union with None (an optional section) or a list of sections."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _sections(part)
