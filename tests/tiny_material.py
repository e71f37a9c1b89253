"""A tiny material of the scenes: five subgroups of five things, drawn as plain shapes."""

import pytest
from PIL import Image, ImageDraw

from aligngpt.quickstart.scenes.material import Hand, Material, Thing

NAMES = {
    "animal-mammal": ("wolf", "fox", "lion", "bear", "pig"),
    "food-fruit": ("lemon", "grapes", "peach", "pear", "mango"),
    "tool": ("hammer", "axe", "wrench", "clamp", "ladder"),
    "drink": ("beer mug", "wine glass", "cup", "bubble tea", "juice"),
    "musical-instrument": ("drum", "flute", "guitar", "violin", "trumpet"),
}


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
