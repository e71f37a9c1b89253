"""The recipes that come with the package: their list, and their text, to be saved and edited."""

from typing import Any

import yaml

from aligngpt.training.recipe_files import RecipeError, recipe_content, recipe_path
from aligngpt.training.recipe_problems import closest


class _Dumper(yaml.SafeDumper):
    """Writes sections as indented blocks and short lists in one line, as the recipes are written by hand."""


def _short_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    flat = not any(isinstance(value, dict | list) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flat)


_Dumper.add_representer(list, _short_list)


def shipped_recipes() -> dict[str, str]:
    """The names of the recipes that come with the package, in alphabetical order, each with its first line's remark."""
    folder = recipe_path("any").parent
    return {path.stem: _remarks(path.read_text(encoding="utf-8"))[0] for path in sorted(folder.glob("*.yaml"))}


def recipe_text(name: str) -> str:
    """The text of a recipe that comes with the package; it does not need any other file.

    A recipe without `base` is returned as it is written. One with `base` is returned with all values that it inherits.

    Raises:
        RecipeError: there is no recipe of this name.
    """
    name = name.removesuffix(".yaml")
    known = shipped_recipes()
    if name not in known:
        meant = closest(name, known)
        raise RecipeError(
            f"no recipe called {name!r} comes with the package; "
            + (f"did you mean {meant}? " if meant else "")
            + f"The recipes are {', '.join(known)}"
        )
    path = recipe_path(name)
    text = path.read_text(encoding="utf-8")
    if "base" not in yaml.safe_load(text):
        return text
    remarks = "".join(f"# {line}\n" for line in _remarks(text))
    sections = recipe_content(path).items()
    return remarks + "".join(
        ("\n" if isinstance(value, dict) else "")
        + yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
        for key, value in sorted(sections, key=lambda section: not isinstance(section[1], dict))
    )


def _remarks(text: str) -> list[str]:
    """The comment lines at the beginning of a recipe."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines or [""]
