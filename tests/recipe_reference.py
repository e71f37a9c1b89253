"""Writes docs/recipes.md, the reference of all keys of a recipe, from the docstrings and types of their definition.

`python tests/recipe_reference.py` writes the page anew.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from aligngpt.training.recipe import (
    LoraRecipe,
    ModelRecipe,
    Recipe,
    SourceRecipe,
    StageRecipe,
    ValidationRecipe,
    WarmStartRecipe,
)

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"

SECTIONS: dict[type[BaseModel], str] = {
    Recipe: "The whole recipe",
    ModelRecipe: "model",
    StageRecipe: "pretrain and instruct",
    SourceRecipe: "data: a list of sources",
    LoraRecipe: "lora",
    ValidationRecipe: "validation",
    WarmStartRecipe: "warm_start",
}

INTRODUCTION = """# The keys of a recipe

A recipe is a YAML file with all settings of a training run. This page lists every key. It is generated from the
definitions in [`training/recipe.py`](../src/aligngpt/training/recipe.py) by `python tests/recipe_reference.py`.

```bash
aligngpt recipe                          # lists the recipes that come with the package
aligngpt recipe laptop > my-recipe.yaml  # prints one of them
aligngpt train my-recipe.yaml --dry-run --set instruct.learning_rate=1e-4
```

A recipe may begin with `base: other.yaml`, another recipe in the same folder, and then inherits every value that it
does not set. `--set section.key=value` overrides a value on the command line. A key or value that is not on this page
is an error. Paths are relative to the working directory.

[Training](training.md) explains how to train, and
[which settings you may change](training.md#resuming-and-what-may-change) before you resume a run.
"""

LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
PLAIN_TYPES = {str: "text", int: "integer", float: "number"}
PLURALS = {"text": "texts", "integer": "integers", "number": "numbers"}


class UndescribedError(Exception):
    """A key has no description, or a type that the page cannot show."""


def page() -> str:
    """The text of docs/recipes.md."""
    return "\n".join([INTRODUCTION, *(_section(section, title) for section, title in SECTIONS.items())])


def descriptions(section: type[BaseModel]) -> dict[str, str]:
    """The descriptions in the `Attributes:` part of a section's docstring, by key (several may share one)."""
    _, _, attributes = inspect.cleandoc(section.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", attributes.rstrip()):
        names, _, text = entry.strip().partition(": ")
        for name in names.split(", "):
            found[name] = " ".join(text.split())
    return found


def _section(section: type[BaseModel], title: str) -> str:
    summary = inspect.cleandoc(section.__doc__ or "").partition("Attributes:")[0].strip()
    lines = [f"## {title}", "", _in_yaml_words(" ".join(summary.split())), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    known = descriptions(section)
    for name, field in section.model_fields.items():
        if name not in known:
            raise UndescribedError(f"{section.__name__}.{name} is not described in the class's docstring")
        meaning = _in_yaml_words(known[name]).replace("`SourceRecipe`", f"[this section](#{_anchor(SourceRecipe)})")
        lines.append(f"| `{name}` | {_value(field)} | {_default(field)} | {meaning.rstrip('.')} |")
    return "\n".join(lines) + "\n"


def _anchor(section: type[BaseModel]) -> str:
    """The name that a link gives to the section's heading."""
    return SECTIONS[section].lower().replace(":", "").replace(" ", "-")


def _in_yaml_words(text: str) -> str:
    """Python's constants as they are written in YAML, and a table's column sign escaped."""
    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", f"`{yaml}`", text)
    return text.replace("|", "\\|")


def _value(field: FieldInfo) -> str:
    if field.discriminator is not None or "SourceRecipe" in repr(field.annotation):
        return f"a path or pattern, or [a list of sources](#{_anchor(SourceRecipe)})"
    limits = [
        f"{LIMITS[name]} {getattr(one, name):g}" for one in field.metadata for name in LIMITS if hasattr(one, name)
    ]
    return " ".join([" or ".join(_kinds(field.annotation)), ", ".join(limits)]).strip()


def _kinds(kind: Any) -> Iterator[str]:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield from _kinds(parts[0])
    elif origin is Literal:
        yield ", ".join(f"`{value}`" for value in parts)
    elif origin in (Union, UnionType):
        for part in parts:
            if part is not NoneType:
                yield from _kinds(part)
    elif origin in (list, tuple):
        names = dict.fromkeys(name for part in parts if part is not Ellipsis for name in _kinds(part))
        yield f"list of {' and '.join(PLURALS.get(name, name) for name in names)}"
    elif origin is dict:
        yield f"{next(_kinds(parts[1]))} by {next(_kinds(parts[0]))}"
    elif kind is bool:
        yield "`true`, `false`"
    elif kind in SECTIONS:
        yield f"[section](#{_anchor(kind)})"
    elif kind in PLAIN_TYPES:
        yield PLAIN_TYPES[kind]
    else:
        raise UndescribedError(f"the page cannot show the type {kind}")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
