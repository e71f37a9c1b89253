"""Opening pictures that anyone may have put there: inside their folder, of a bounded size, whole, and as RGB."""

import io
import warnings
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from aligngpt.errors import AlignGPTError

ImageReason = Literal["missing", "empty", "not_an_image", "truncated", "too_large", "outside_root", "unreadable"]
IMAGE_REASONS: tuple[str, ...] = get_args(ImageReason)

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read. Formats that start other programs (EPS) or that few people mean are left out."""

MAX_PIXELS = 64_000_000

# Until all of Pillow's formats are registered, it does not know the rarer ones by name.
Image.init()


class ImageError(AlignGPTError):
    """A picture cannot be used; `reason` is one of `IMAGE_REASONS`."""

    def __init__(self, reason: ImageReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def resolve_image(name: str, root: Path) -> Path:
    """The path of a picture named in a record, which must lie inside `root`.

    Args:
        name: as written in the record, relative to `root`.
        root: the folder that pictures may be read from.

    Raises:
        ImageError: the name is absolute, or leaves `root` through `..` or a symbolic link.
    """
    path = root / name
    try:
        inside = not Path(name).is_absolute() and _is_inside(path.resolve(), root.absolute())
    except (ValueError, RuntimeError, OSError):
        # A name no file can have, or a loop of symbolic links.
        inside = False
    if not inside:
        raise ImageError("outside_root", f"the image {name!r} is not inside {root}; name the right image root")
    return path


def _is_inside(real: Path, root: Path) -> bool:
    """Whether a resolved path is in a folder; a folder that is linked anew meanwhile is found."""
    return real.is_relative_to(_resolved(root)) or real.is_relative_to(root.resolve())


@lru_cache(maxsize=64)
def _resolved(folder: Path) -> Path:
    """Where a folder is, asked of the file system once: every record of a source names the same one."""
    return folder.resolve()


def open_image(source: Path | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open and decode a picture in full, upright (EXIF) and as RGB.

    Transparent parts become white, 16-bit greys are scaled to 8 bits, of an animation the first frame is taken.

    Args:
        source: a file, its content, or an open file.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        ImageError: the picture is missing, empty, of no known format, cut short, too large or damaged.
    """
    image = _identify(source, max_pixels)
    name = _name(source)
    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, EOFError, SyntaxError) as error:
        raise ImageError("truncated", f"{name} is damaged or cut short: {error}") from error
    except (ValueError, MemoryError, Image.DecompressionBombError, ZeroDivisionError) as error:
        raise ImageError("unreadable", f"{name} cannot be decoded: {error}") from error


def check_image(source: Path | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> None:
    """Look at a picture's header only: is it there, of a known format, and of a size that can be opened?

    Raises:
        ImageError: as `open_image`, but for damage beyond the header.
    """
    _identify(source, max_pixels).close()


def _identify(source: Path | bytes | BinaryIO, max_pixels: int) -> Image.Image:
    name = _name(source)
    if isinstance(source, Path):
        _check_file(source)
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    if isinstance(stream, io.BytesIO) and not stream.getbuffer().nbytes:
        raise ImageError("empty", f"{name} is empty")
    try:
        with warnings.catch_warnings():
            # Our own limit follows; Pillow's warning would only repeat it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError("not_an_image", f"{name} is no picture in {', '.join(FORMATS)}") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ImageError("unreadable", f"{name} cannot be opened: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise ImageError("too_large", f"{name} has {width} × {height} pixels, at most {max_pixels} are opened")
    return image


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("missing", f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise ImageError("unreadable", f"{str(path)!r} cannot be read: {error}") from error
    if path.is_dir():
        raise ImageError("not_an_image", f"{path} is a folder")
    if size == 0:
        raise ImageError("empty", f"{path} is empty")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled_to_8_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    """Pillow clips 16-bit greys at 255 when it converts them, which makes nearly every picture white."""
    values = np.asarray(image, dtype=np.float64)
    top = 65535 if values.max(initial=0) > 255 else 255
    return Image.fromarray(np.clip(values * 255 / top, 0, 255).round().astype(np.uint8))


def _name(source: Path | bytes | BinaryIO) -> str:
    if isinstance(source, Path):
        return str(source)
    return str(getattr(source, "name", "the picture"))
