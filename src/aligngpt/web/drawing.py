"""Draws what the gate did: its weights as bars, and the parts of a picture that match the question."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from aligngpt.inference.engine import Engine, Request

SIDE = 384
"""Pixels along the longer side of the drawn picture."""

STRENGTH = 0.6
"""Share of the colour in the drawn picture."""


def gate_bars(weights: Sequence[float], with_whole: bool) -> str:
    """The gate's weights as HTML: a bar per level, with a mark where all bars would end if they were equal.

    Args:
        weights: of levels 1…N-1, from 0 to 1.
        with_whole: whether level N, the whole image, is added to the mix.
    """
    even = 1 / len(weights)
    longest = max(*weights, even)
    rows = "".join(
        f'<div class="level"><span>level {level}</span><div class="track">'
        f'<div class="bar" style="width:{weight / longest:.2%}"></div>'
        f'<div class="even" style="left:{even / longest:.2%}"></div></div><span>{weight:.1%}</span></div>'
        for level, weight in enumerate(weights, start=1)
    )
    whole = f"Level {len(weights) + 1} (the whole image) and a mix of:" if with_whole else "A mix of:"
    return (
        f'<div class="gate"><p>{whole}</p>{rows}<p class="remark">The line marks equal weights ({even:.1%}).</p></div>'
    )


def seen_by_model(engine: Engine, request: Request) -> Image.Image:
    """The first picture of a request as the model sees it: scaled and cut by the image processor, RGB."""
    pixels = engine.prompts.write(request, 1).pixels
    assert pixels is not None
    processor = engine.processor.image_processor
    values = pixels[0].float().cpu().numpy().transpose(1, 2, 0)
    if getattr(processor, "do_normalize", True):
        values = values * np.asarray(processor.image_std) + np.asarray(processor.image_mean)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def highlighted(picture: Image.Image, cosines: np.ndarray) -> Image.Image:
    """Colour the parts of a picture: dark where it matches the question least, bright where it does most.

    Args:
        picture: RGB.
        cosines: `(grid, grid)`; equal ones are all drawn alike.

    Returns:
        RGB, with the picture's proportions and `SIDE` pixels along its longer side.
    """
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    spread = float(cosines.max() - cosines.min())
    shares = (cosines - cosines.min()) / spread if spread else np.full_like(cosines, 0.5)
    colours = Image.fromarray((colormaps["inferno"](shares)[..., :3] * 255).round().astype(np.uint8))
    large = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return Image.blend(large, colours.resize(size, Image.Resampling.NEAREST), STRENGTH)


def example_pictures() -> list[tuple[Image.Image, str]]:
    """Plain shapes, 64 × 64, each with a question about it."""
    drawn = []
    for shape, colour, background, question in (
        ("circle", "#1f9d3a", "#e8e3f7", "what shape is in the image?"),
        ("rectangle", "#c62828", "#e1f1ee", "what color is the rectangle?"),
        ("triangle", "#1e4fd6", "#f6efdc", "does the image contain a circle?"),
    ):
        picture = Image.new("RGB", (64, 64), background)
        draw = ImageDraw.Draw(picture)
        if shape == "circle":
            draw.ellipse((16, 12, 46, 42), colour)
        elif shape == "rectangle":
            draw.rectangle((12, 22, 50, 44), colour)
        else:
            draw.polygon([(32, 12), (52, 48), (12, 48)], colour)
        drawn.append((picture, question))
    return drawn
