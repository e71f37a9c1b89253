import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from aligngpt.quickstart.scenes.files import ScenesFiles
from aligngpt.quickstart.scenes.material import Hand, Material, Thing
from aligngpt.quickstart.scenes.preparing import Sizes, prepare_scenes

NAMES = {
    "animal-mammal": ("wolf", "fox", "lion", "bear", "pig"),
    "food-fruit": ("lemon", "grapes", "peach", "pear", "mango"),
    "tool": ("hammer", "axe", "wrench", "clamp", "ladder"),
    "drink": ("beer mug", "wine glass", "cup", "bubble tea", "juice"),
    "musical-instrument": ("drum", "flute", "guitar", "violin", "trumpet"),
}
SIZES = Sizes(captions=40, encoder=10, train=12, validation=3, test=20, shift=8)


def tiny_things() -> tuple[Thing, ...]:
    """Five things in each of five subgroups, one of which is kept for test_subgroup."""
    return tuple(
        Thing(f"{0x1F400 + 16 * number + place:x}", name, subgroup, (f"tag of {name}",), {"de": f"{name} auf Deutsch"})
        for number, (subgroup, names) in enumerate(NAMES.items())
        for place, name in enumerate(names)
    )


def tiny_hand(name: str, shape: str) -> Hand:
    """Draws each thing as a rectangle or an ellipse in a colour of its own."""

    def draw(code: str, size: int) -> Image.Image:
        image = Image.new("RGBA", (size, size))
        number = int(code, 16) * 40503
        colour = (number % 251, number // 251 % 241, number // 7 % 239, 255)
        getattr(ImageDraw.Draw(image), shape)((1, 1, size - 2, size - 2), fill=colour)
        return image

    return Hand(name, "MIT", draw, frozenset(thing.code for thing in tiny_things()))


def tiny_material(unseen_hand: bool = True) -> Material:
    unseen = tiny_hand("unseen", "ellipse") if unseen_hand else None
    return Material(tiny_things(), (tiny_hand("seen", "rectangle"),), unseen, {"tiny==1": "MIT"})


@pytest.fixture(scope="session")
def material() -> Material:
    return tiny_material()


@pytest.fixture
def make_material() -> Callable[[bool], Material]:
    return tiny_material


@pytest.fixture(scope="session")
def sizes() -> Sizes:
    return SIZES


@pytest.fixture(scope="session")
def scenes(material: Material, tmp_path_factory: pytest.TempPathFactory) -> ScenesFiles:
    """A small prepared folder of the tiny material, with 60 % noise. Not to be changed."""
    return prepare_scenes(tmp_path_factory.mktemp("scenes") / "data", material=material, sizes=SIZES, noise=0.6)


@pytest.fixture
def iconify_folder(tmp_path: Path) -> Path:
    """A package of Iconify's with three icons, one of them under another name, one of them twice as wide as high."""
    folder = tmp_path / "iconify"
    folder.mkdir()
    icons = {
        "prefix": "tiny",
        "width": 10,
        "height": 10,
        "icons": {
            "wolf": {"body": '<rect width="10" height="10" fill="#ff0000"/>'},
            "fox": {"body": '<rect width="20" height="10" fill="#0000ff"/>', "width": 20},
            "broken": {"body": "<rect"},
        },
        "aliases": {"old-wolf": {"parent": "wolf"}},
    }
    (folder / "icons.json").write_text(json.dumps(icons))
    (folder / "chars.json").write_text(json.dumps({"1f43a": "old-wolf", "1f98a": "fox", "1f400": "broken"}))
    return folder
