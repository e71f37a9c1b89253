"""Small copies of images, for pages without files beside them."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from aligngpt.data.images.opening import ImageError, open_image, resolve_image

THUMBNAIL_PIXELS = 160

_PROBLEMS = {
    "missing": "no such file",
    "empty": "not an image",
    "not_an_image": "not an image",
    "too_large": "too large an image",
}


class Thumbnail(NamedTuple):
    """A small copy of an image as a `data:` URL and its size in pixels, or the problem with the image."""

    address: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


def thumbnail(path: Path) -> Thumbnail:
    """Shrink an image file to at most 160 × 160 pixels, as a PNG or a JPEG, whichever is smaller. Never raises."""
    try:
        # Reading a pipe or a device would hang or never end.
        if not path.is_file():
            return Thumbnail(problem="not a file" if path.exists() else "no such file")
        return shrunk(open_image(path))
    except ImageError as error:
        problem = _PROBLEMS.get(error.reason)
    # Decoders raise almost any exception on damaged files, and one image must not fail the report.
    except Exception as error:
        return Thumbnail(problem=f"unreadable ({type(error).__name__})")
    return Thumbnail(problem=problem or "unreadable")


def thumbnail_in(root: Path, name: str | Path) -> Thumbnail:
    """The thumbnail of an image inside a folder, given by a path relative to it or an absolute one. Never raises."""
    try:
        return thumbnail(resolve_image(str(name), root))
    except ImageError:
        return Thumbnail(problem="outside the image folder")


def shrunk(image: Image.Image) -> Thumbnail:
    """A thumbnail of an RGB image, at most 160 × 160 pixels; shrinks the image in place."""
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    encoded = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 82})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        encoded[kind] = base64.b64encode(buffer.getvalue()).decode("ascii")
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return Thumbnail(f"data:image/{kind};base64,{encoded[kind]}", *image.size)
