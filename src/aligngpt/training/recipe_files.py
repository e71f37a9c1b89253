"""Recipe files: reading one with its bases, setting single values, finding those that come with the package."""

from pathlib import Path
from typing import Any

import yaml

from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import near_paths


class RecipeError(AlignGPTError):
    """A recipe cannot be read or has an invalid value; the message names the file and the field."""


class UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        known: list[Any] = []
        for key, _ in node.value:
            if key.value in known:
                said = f"{key.value} is given twice; keep one of the two"
                raise yaml.composer.ComposerError(None, None, said, key.start_mark)
            known.append(key.value)
        return node


def recipe_content(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The plain data of a recipe, merged over that of its bases; it is not validated.

    Args:
        path: the YAML file.
        above: the recipes that inherit from it.

    Raises:
        RecipeError: the file or one of its bases cannot be read.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)
    except FileNotFoundError as error:
        raise RecipeError(f"the recipe {path} cannot be read: no such file{_instead_of(path)}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"the recipe {path} must hold the sections model, pretrain, instruct; found {content!r:.80}")
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str) or path in above:
        raise RecipeError(f"the recipe {path}: base must name another recipe in the same folder, found {base!r}")
    return _merged(recipe_content(path.parent / base, (*above, path)), content)


def _instead_of(path: Path) -> str:
    """Advice for a recipe that does not exist."""
    shipped = recipe_path(path.stem)
    if shipped.is_file() and path.suffix in ("", ".yaml"):
        return f"; `aligngpt recipe {path.stem} --out {path.stem}.yaml` writes the one that comes with the package"
    if near := near_paths(path):
        return f"; did you mean {' or '.join(near)}?"
    return "; `aligngpt recipe` lists the recipes that come with the package"


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict)
        merged[name] = _merged(base[name], value) if both else value
    return merged


def recipe_path(name: str) -> Path:
    """The path of a recipe that ships with the package, such as `quickstart`."""
    package = Path(__file__).parents[1]
    # A checkout has the recipes next to `src`, an installed wheel inside the package.
    checkout = package.parents[1] / "recipes"
    folder = checkout if checkout.is_dir() else package / "recipes"
    return folder / f"{name}.yaml"


def set_value(content: dict[str, Any], override: str) -> None:
    """Set one value in the plain data of a recipe.

    Args:
        content: see `recipe_content`; changed in place.
        override: `section.field=value`; the value is parsed as YAML.

    Raises:
        RecipeError: `override` is not of this form.
    """
    key, separator, value = override.partition("=")
    *sections, field = key.strip().split(".")
    if not separator or not field:
        raise RecipeError(f"{override!r} is not a setting; write section.field=value, such as instruct.epochs=2")
    target = content
    for section in sections:
        # A section that is not there may be written as null.
        if target.get(section) is None:
            target[section] = {}
        target = target[section]
        if not isinstance(target, dict):
            raise RecipeError(f"{override!r}: {section} is a value, not a section")
    try:
        target[field] = yaml.load(value, UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{override!r}: the value is not YAML: {error}") from error
