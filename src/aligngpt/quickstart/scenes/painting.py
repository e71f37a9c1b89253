"""Scenes as pictures."""

import random

from PIL import Image

from aligngpt.quickstart.scenes.material import DRAW_SIZES, Hand
from aligngpt.quickstart.scenes.scene import Scene

CANVAS = 84
"""Side of a picture in pixels."""


def paint(scene: Scene, hand: Hand, rng: random.Random) -> Image.Image:
    """An RGB picture of `CANVAS` × `CANVAS` px; each thing lies at a random place inside its cell."""
    picture = Image.new("RGB", (CANVAS, CANVAS), scene.background)
    cell_side = CANVAS // scene.side
    size = DRAW_SIZES[scene.side - 2]
    for cell in scene.occupied:
        thing = scene.cells[cell]
        assert thing is not None
        drawn = hand.draw(thing.code, size)
        left = cell % scene.side * cell_side + rng.randint(0, cell_side - size)
        top = cell // scene.side * cell_side + rng.randint(0, cell_side - size)
        picture.paste(drawn, (left, top), drawn)
    return picture
