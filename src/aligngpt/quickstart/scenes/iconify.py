"""Hands and names from npm packages: Iconify's emoji sets, drawn by resvg, and Emojibase's names and subgroups."""

import io
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from aligngpt.quickstart.scenes.material import (
    Hand,
    Material,
    MaterialError,
    Thing,
    choose_things,
    foreign_names,
    tags_beside_name,
)
from aligngpt.quickstart.scenes.npm_packages import NpmPackage, fetch

TRAIN_SETS = (
    NpmPackage(
        "@iconify-json/noto", "1.2.9", "Apache-2.0", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"
    ),
    NpmPackage(
        "@iconify-json/twemoji",
        "1.2.5",
        "CC-BY-4.0",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
)
UNSEEN_SET = NpmPackage(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "MIT",
    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
)
NAMES = NpmPackage(
    "emojibase-data", "17.0.0", "MIT", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"
)
LANGUAGES = ("de", "es", "fi", "fr", "it", "pl")


def npm_material() -> Material:
    """Three hands: Noto and Twemoji for training, Fluent held out; with names, subgroups, tags and foreign names.

    Raises:
        MaterialError: npm or resvg-py is missing, a package cannot be fetched, or is not the expected one.
        CacheError: the cache cannot be written.
    """
    _rasteriser()
    packages = (*TRAIN_SETS, UNSEEN_SET)
    hands = [read_hand(fetch(package, ("icons.json", "chars.json")), package) for package in packages]
    data = [f"{language}/data.json" for language in ("en", *LANGUAGES)]
    candidates = read_things(fetch(NAMES, (*data, "meta/groups.json")))
    return Material(
        choose_things(candidates, hands),
        tuple(hands[:-1]),
        hands[-1],
        {package.requirement: package.licence for package in (*packages, NAMES)}
        # Another version may draw other pixels.
        | {f"resvg-py=={version('resvg-py')}": "draws the pictures, not part of them"},
    )


def read_hand(folder: Path, package: NpmPackage) -> Hand:
    """An emoji set of Iconify.

    Args:
        folder: contains `icons.json` (name → SVG) and `chars.json` (code → name).
        package: the package of these files, for the hand's name and licence.
    """
    icons, names = _load(folder / "icons.json"), _load(folder / "chars.json")

    @cache
    def draw(code: str, size: int) -> Image.Image:
        try:
            png = bytes(_rasteriser().svg_to_bytes(svg_string=_svg(icons, names[code]), width=size, height=size))
        except ValueError as error:
            raise MaterialError(f"{names[code]} of {package.requirement} cannot be drawn: {error}") from error
        with Image.open(io.BytesIO(png)) as image:
            square = Image.new("RGBA", (size, size))
            square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        return square

    return Hand(package.name.rpartition("/")[2], package.licence, draw, frozenset(names))


def read_things(folder: Path) -> list[Thing]:
    """All things of Emojibase's data with a subgroup, with tags and foreign names.

    Args:
        folder: contains `en/data.json`, the same for other languages, and `meta/groups.json`.
    """
    subgroups = _load(folder / "meta" / "groups.json")["subgroups"]
    foreign: dict[str, dict[str, str]] = {
        language: {_code(one): one["label"] for one in _load(path)}
        for language in LANGUAGES
        if (path := folder / language / "data.json").is_file()
    }
    things = []
    for one in _load(folder / "en" / "data.json"):
        if (subgroup := one.get("subgroup")) is None:
            continue
        code, name = _code(one), one["label"]
        names = {language: labels[code] for language, labels in foreign.items() if code in labels}
        tags = tags_beside_name(name, one.get("tags", ()))
        things.append(Thing(code, name, subgroups[str(subgroup)], tags, foreign_names(name, names)))
    return things


def _svg(icons: dict[str, Any], name: str) -> str:
    name = icons.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icons["icons"][name]
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {head} viewBox="0 0 {width} {height}">{icon["body"]}</svg>'


def _code(one: dict[str, Any]) -> str:
    return one["hexcode"].lower().replace("-fe0f", "")


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MaterialError(f"{path} cannot be read ({error}); remove its folder, it will be fetched again") from error


def _rasteriser() -> Any:
    try:
        import resvg_py
    except ImportError as error:
        raise MaterialError("drawing the emoji sets needs resvg-py; run: pip install 'resvg-py>=0.5'") from error
    return resvg_py
