"""Shared parts of the HTML pages: field types for text and numbers, and the template environment."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BeforeValidator, ConfigDict

# Control characters and noncharacters, which XML does not allow or nobody can read.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


def _readable(value: object) -> object:
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        # A lone surrogate is legal in a JSON string but not in UTF-8.
        return _UNPRINTABLE.sub("\ufffd", value.encode("utf-8", "replace").decode("utf-8"))
    return value


def _plain(value: Any) -> Any:
    """Convert NumPy arrays and scalars to Python numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return value


Text = Annotated[str, BeforeValidator(_readable)]
PathText = Annotated[str | Path, BeforeValidator(_readable)]
Number = Annotated[float, BeforeValidator(_plain)]
Count = Annotated[int, BeforeValidator(_plain)]
Numbers = Annotated[list[float], BeforeValidator(_plain)]
Counts = Annotated[list[int], BeforeValidator(_plain)]

# A loss may be NaN, which JSON can only represent as a string.
page_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


def require(condition: bool, message: str) -> None:
    """Raise a `ValueError` with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def page_environment() -> Environment:
    """The template environment, which escapes everything that is not `Markup`."""
    return Environment(
        loader=PackageLoader("aligngpt.reports", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
