"""Small pictures of the drawings, and which of them look the same."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from aligngpt.data.images.opening import ImageError, check_image

SIDE = 84
"""Side of a picture in pixels."""

MAX_PIXELS = 25_000_000
"""Larger files are refused before they are decoded; the largest of the library has 168 million pixels."""


def small_picture(file: Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image | None:
    """A drawing cropped to what is not transparent, on white, scaled to fit a square of `SIDE` pixels.

    Args:
        file: a PNG.
        max_pixels: size above which it is refused.

    Returns:
        The picture in RGB; None if nothing is drawn on it.

    Raises:
        ImageError: the file is not an image, is damaged, or is too large.
    """
    check_image(file, max_pixels=max_pixels)
    try:
        with Image.open(file) as opened:
            drawing = opened.convert("RGBA")
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError("truncated", f"{file} is damaged or cut short: {error}") from error
    box = drawing.getchannel("A").getbbox()
    if box is None:
        return None
    drawing = drawing.crop(box)
    flat = Image.alpha_composite(Image.new("RGBA", drawing.size, "white"), drawing).convert("RGB")
    if ImageChops.invert(flat).getbbox() is None:
        return None
    scale = SIDE / max(flat.size)
    width, height = (max(1, round(length * scale)) for length in flat.size)
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    scaled = flat.resize((width, height), Image.Resampling.LANCZOS)
    picture.paste(scaled, ((SIDE - width) // 2, (SIDE - height) // 2))
    return picture


def look_of(picture: Image.Image) -> bytes:
    """A hash of what a picture looks like (dHash: whether each of 8 × 16 cells is lighter than its right neighbour)."""
    cells = np.asarray(picture.convert("L").resize((17, 8), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(cells[:, 1:] > cells[:, :-1] + 2).tobytes()
