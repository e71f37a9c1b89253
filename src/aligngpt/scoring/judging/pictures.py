"""Images as a judge gets them: upright, bounded in size, as a `data:` URL."""

import base64
import hashlib
import io
from dataclasses import replace
from typing import NamedTuple

from PIL import Image

from aligngpt.data.images.opening import ImageError
from aligngpt.data.images.reference import Picture
from aligngpt.scoring.picture_marks import ABSENT, has_file, mark_of

QUALITY = 92


class Shown(NamedTuple):
    """An image that can be sent.

    Attributes:
        hash: BLAKE2b of the file's content, 128 bits in hexadecimal.
        size: width and height of the upright image before it is shrunk, in pixels.
        url: a JPEG as a `data:` URL.
        mark: see `aligngpt.scoring.picture_marks`; empty for an image that is not a separate file.
    """

    hash: str
    size: tuple[int, int]
    url: str
    mark: bytes


class NotShown(NamedTuple):
    """An unusable image; `reason` is one of `IMAGE_REASONS`, `mark` is as in `Shown`."""

    reason: str
    detail: str
    mark: bytes


def shown_picture(picture: Picture, max_side: int) -> Shown | NotShown:
    """Prepare an image.

    Args:
        picture: the image.
        max_side: largest width and height in pixels; larger images are shrunk, because they cost more.
    """
    mark = ABSENT if has_file(picture) else b""
    try:
        content = picture.read()
        mark = mark and mark_of(content)
        image = replace(picture, path=None, offset=0, length=None, content=content).open()
        size = image.size
        if max(size) > max_side:
            shrunk = (max(1, round(side * max_side / max(size))) for side in size)
            image = image.resize((next(shrunk), next(shrunk)), Image.Resampling.LANCZOS)
        written = io.BytesIO()
        image.save(written, "JPEG", quality=QUALITY, subsampling=0)
    except ImageError as error:
        return NotShown(error.reason, str(error), mark)
    except (ValueError, MemoryError) as error:
        return NotShown("unreadable", f"{picture.name} cannot be prepared for the judge: {error}", mark)
    url = f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"
    return Shown(hashlib.blake2b(content, digest_size=16).hexdigest(), size, url, mark)
