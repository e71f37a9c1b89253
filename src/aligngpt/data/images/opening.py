"""Opening pictures that anyone may have put there: inside their folder, of a bounded size, whole, and as RGB."""

import io
import os
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from aligngpt.data.sources.mistaken_files import mistaken_for
from aligngpt.errors import AlignGPTError

ImageReason = Literal["missing", "empty", "not_an_image", "truncated", "too_large", "outside_root", "unreadable"]
IMAGE_REASONS: tuple[str, ...] = get_args(ImageReason)

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read. Formats that start other programs (EPS) or that few people mean are left out."""

MAX_PIXELS = 64_000_000

STRIP_PIXELS = 1 << 18
"""Pixels that are converted at a time."""

# Until all of Pillow's formats are registered, it does not know the rarer ones by name.
Image.init()

# Our own limit comes right behind; Pillow's warning would only repeat it. Set once: filters belong to the process, and
# pictures are opened in several threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(AlignGPTError):
    """A picture cannot be used; `reason` is one of `IMAGE_REASONS`."""

    def __init__(self, reason: ImageReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def resolve_image(name: str, root: Path) -> Path:
    """The path of a picture named in a record, which must lie inside `root`.

    Args:
        name: as written in the record: relative to `root`, or an absolute path below it.
        root: the folder that pictures may be read from.

    Raises:
        ImageError: the name leaves `root`, by itself, through `..` or through a symbolic link.
    """
    path = root / name
    try:
        real = path.resolve()
        if _is_inside(real, root.absolute()):
            return path
        why = _why_outside(path, real, root)
    except (ValueError, RuntimeError, OSError):
        # A name no file can have, or a loop of symbolic links.
        why = "no file can have that name"
    raise ImageError("outside_root", f"the image {name!r} is not inside {root}: {why}")


def _why_outside(path: Path, real: Path, root: Path) -> str:
    if Path(os.path.normpath(path.absolute())).is_relative_to(root.absolute()):
        link = next((part for part in reversed((path, *path.parents)) if part != root and part.is_symlink()), path)
        return (
            f"{link} is a link that leads to {real if link == path else link.resolve()}; name an image root that holds "
            "both, with paths from there, or mount the folder there (mount --bind) instead of the link"
        )
    return "name the right image root (pictures above it, or beside it, are not read)"


def _is_inside(real: Path, root: Path) -> bool:
    """Whether a resolved path is in a folder; a folder that is linked anew meanwhile is found."""
    return real.is_relative_to(_resolved(root)) or real.is_relative_to(root.resolve())


@lru_cache(maxsize=64)
def _resolved(folder: Path) -> Path:
    """Where a folder is, asked of the file system once: every record of a source names the same one."""
    return folder.resolve()


def open_image(source: Path | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open and decode a picture in full, upright (EXIF) and as RGB.

    Transparent parts become white, greys of more than 8 bits are scaled to 8, of an animation the first frame is taken.
    Beside the decoded picture and the RGB one (four bytes a pixel each) little memory is used.

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
        # In place, or a picture that is upright already would be copied.
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
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
        image = Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        what = mistaken_for(_beginning(stream)) or f"is no picture in {', '.join(FORMATS)}"
        raise ImageError("not_an_image", f"{name} {what}") from error
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


def _beginning(source: Path | BinaryIO) -> bytes:
    if isinstance(source, Path):
        with source.open("rb") as file:
            return file.read(100)
    source.seek(0)
    return source.read(100)


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
    """Convert a few rows at a time, so that the copies on the way are small."""
    result = Image.new("RGB", image.size)
    for strip, top in _strips(image):
        result.paste(convert(strip), (0, top))
    return result


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """Pieces of a picture of a few rows each, with the row that each begins at."""
    width, height = image.size
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield image.crop((0, top, width, min(top + rows, height))), top


def _on_white(image: Image.Image) -> Image.Image:
    opaque = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")


def _float_top(image: Image.Image) -> float:
    """What is white in a picture of floats, which are 0…1, 0…255 or 0…65535; else the largest of them."""
    largest = max((float(np.nan_to_num(np.asarray(strip), posinf=0).max()) for strip, _ in _strips(image)), default=0)
    return next((top for top in (1.0, 255.0, 65535.0) if largest <= top), largest)


def _scaled_to_8_bits(image: Image.Image, top: float) -> Image.Image:
    """Greys of 0 to `top` as 8 bits. Pillow clips them at 255 instead, which makes nearly every picture white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    return Image.fromarray(np.clip(values * 255 / top, 0, 255).round().astype(np.uint8)).convert("RGB")


def _name(source: Path | bytes | BinaryIO) -> str:
    if isinstance(source, Path):
        return str(source)
    return str(getattr(source, "name", "the picture"))
