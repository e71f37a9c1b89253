"""What every part of the package makes of a decoded image before it is preprocessed: upright, RGB, on white."""

from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

STRIP_PIXELS = 1 << 18
"""Pixels converted at a time."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""

_ORIENTED = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
"""What an image's `info` may have its orientation in."""


def upright_rgb(image: Image.Image) -> Image.Image:
    """A decoded image upright (EXIF) and as RGB; one that is both already is returned unchanged.

    Transparency is composited onto white, and grayscale of more than 8 bits is scaled to 8.
    """
    return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF says to show it.

    `ImageOps.exif_transpose` would also encode the EXIF again, which fails for tags of a wrong type.
    """
    turn = None
    # An image whose EXIF cannot be read is shown as it is stored.
    with suppress(Exception):
        turn = _UPRIGHT.get(image.getexif().get(Base.Orientation, 1))
    if turn is None:
        return image
    turned = image.transpose(turn)
    for name in _ORIENTED:
        # Otherwise, who opens it again would turn it once more.
        turned.info.pop(name, None)
    return turned


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        top = _float_top(image) if image.mode == "F" else 65535
        return _by_strips(image, lambda strip: _scaled_to_8_bits(strip, top))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _by_strips(image, _on_white)
    return image.convert("RGB")


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert a few rows at a time, to keep the intermediate copies small."""
    result = Image.new("RGB", image.size)
    for strip, top in _strips(image):
        result.paste(convert(strip), (0, top))
    return result


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """Yield horizontal strips of an image, each with its first row."""
    width, height = image.size
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield image.crop((0, top, width, min(top + rows, height))), top


def _on_white(image: Image.Image) -> Image.Image:
    opaque = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")


def _float_top(image: Image.Image) -> float:
    """The white level of a float image: the smallest of 1, 255 and 65535 that covers its values, else its maximum."""
    largest = max((float(np.nan_to_num(np.asarray(strip), posinf=0).max()) for strip, _ in _strips(image)), default=0)
    return next((top for top in (1.0, 255.0, 65535.0) if largest <= top), largest)


def _scaled_to_8_bits(image: Image.Image, top: float) -> Image.Image:
    """Scale gray values 0…`top` to 8 bits. Pillow would clip them at 255, turning nearly every image white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    return Image.fromarray(np.clip(values * 255 / top, 0, 255).round().astype(np.uint8)).convert("RGB")
