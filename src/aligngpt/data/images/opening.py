"""Open untrusted images: confined to their folder, bounded in size, decoded in full and converted to RGB."""

import io
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from PIL import Image, UnidentifiedImageError, features

from aligngpt.data.images.near_names import near_names
from aligngpt.data.sources.mistaken_files import mistaken_for, not_read
from aligngpt.data.sources.remote import RemotePath, image_below
from aligngpt.data.sources.remote_store import RemoteDeniedError
from aligngpt.errors import AlignGPTError
from aligngpt.upright_rgb import upright_rgb

ImageReason = Literal["missing", "empty", "not_an_image", "truncated", "too_large", "outside_root", "unreadable"]
IMAGE_REASONS: tuple[str, ...] = get_args(ImageReason)

FORMATS = (*(("AVIF",) if features.check("avif") else ()), "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The supported formats; AVIF where Pillow reads it. Those that start other programs (EPS) or are rarely intended are
excluded."""

MAX_PIXELS = 64_000_000

MAX_SIDE = 16_384
"""Longest side in pixels: an image processor that pads makes a square of it, here of 0.8 GB."""

MAX_RATIO = 200
"""Longer side over shorter side, at most: an image processor that scales the shorter side to its own size would make
gigabytes of an image of 20000 × 1 pixels."""

HEADER = 1 << 16
"""Bytes that contain the header of most images."""

# Pillow knows its rarer formats by name only once all of its plugins are registered.
Image.init()

# Our own limit is checked right after opening, so Pillow's warning is redundant. Set once: filters are process-wide,
# and images are opened in several threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(AlignGPTError):
    """An image cannot be used; `reason` is one of `IMAGE_REASONS`."""

    def __init__(self, reason: ImageReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def resolve_image(name: str, root: Path) -> Path:
    """Return the path of an image named in a record, which must be inside `root`.

    Args:
        name: as written in the record: relative to `root`, or an absolute path below it.
        root: the folder that images may be read from.

    Raises:
        ImageError: the path is outside `root`: as written, through `..` or through a symbolic link.
    """
    if isinstance(root, RemotePath):
        if (found := image_below(name, root)) is None:
            raise ImageError("outside_root", f"the image {name!r} is not inside {root}: give a path relative to it")
        return found
    path = root / name
    try:
        real = path.resolve()
        if _is_inside(real, root.absolute()):
            return path
        why = _why_outside(path, real, root)
    except (ValueError, RuntimeError, OSError):
        # An impossible file name, or a loop of symbolic links.
        why = "it is not a valid file name, or a loop of symbolic links"
    raise ImageError("outside_root", f"the image {name!r} is not inside {root}: {why}")


def _why_outside(path: Path, real: Path, root: Path) -> str:
    if Path(os.path.normpath(path.absolute())).is_relative_to(root.absolute()):
        link = next((part for part in reversed((path, *path.parents)) if part != root and part.is_symlink()), path)
        return (
            f"{link} is a symbolic link to {real if link == path else link.resolve()}; use an image root that contains "
            "both, with paths relative to it, or replace the link with a bind mount (mount --bind)"
        )
    return "set the right image root (images outside it are not read)"


def _is_inside(real: Path, root: Path) -> bool:
    """Whether a resolved path is in a folder, even if the folder is a link whose target changed after caching."""
    return real.is_relative_to(_resolved(root)) or real.is_relative_to(root.resolve())


@lru_cache(maxsize=64)
def _resolved(folder: Path) -> Path:
    """The resolved path of a folder, cached because all records of a source share it."""
    return folder.resolve()


def open_image(
    source: Path | bytes | BinaryIO,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = FORMATS,
    check_size: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """Decode an image in full, upright (EXIF) and as RGB.

    Transparency is composited onto white, grayscale of more than 8 bits is scaled to 8, and of an animation the first
    frame is taken. Little memory is used beyond the decoded and the RGB image (four bytes per pixel each).

    Args:
        source: a path, the encoded bytes, or an open file.
        max_pixels: larger images are rejected before they are decoded.
        formats: the formats to accept, some of `FORMATS`.
        check_size: called with the width and height before the image is decoded; it may raise an error of its own.

    Raises:
        ImageError: the image is missing, empty, of an unknown format, truncated, too large (see also `check_shape`) or
            damaged.
    """
    image = _identify(source, max_pixels, formats, check_size)
    name = _name(source)
    try:
        image.load()
        return upright_rgb(image)
    except (OSError, EOFError, SyntaxError) as error:
        raise ImageError("truncated", f"{name} is damaged or cut short: {error}") from error
    except Exception as error:
        # Decoders raise whatever they meet in a damaged file, such as TypeError or RuntimeError.
        raise ImageError("unreadable", f"{name} cannot be decoded: {error}") from error


def check_image(source: Path | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> None:
    """Check an image's header only: it exists, has a known format and is not too large.

    Raises:
        ImageError: as `open_image`, except for damage beyond the header.
    """
    if isinstance(source, RemotePath):
        # The first bytes usually suffice.
        with suppress(ImageError):
            _identify(_named(remote_bytes(source, 0, HEADER), str(source)), max_pixels).close()
            return
    _identify(source, max_pixels).close()


def _identify(
    source: Path | bytes | BinaryIO,
    max_pixels: int,
    formats: Sequence[str] = FORMATS,
    check_size: Callable[[int, int], None] | None = None,
) -> Image.Image:
    name = _name(source)
    if isinstance(source, RemotePath):
        source = _named(remote_bytes(source), name)
    elif isinstance(source, Path):
        _check_file(source)
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    if isinstance(stream, io.BytesIO) and not stream.getbuffer().nbytes:
        raise ImageError("empty", f"{name} is empty")
    try:
        image = Image.open(stream, formats=tuple(formats))
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        head = _beginning(stream)
        what = (
            mistaken_for(head)
            or not_read(head, formats)
            or f"is not an image in any of the formats {', '.join(formats)}"
        )
        raise ImageError("not_an_image", f"{name} {what}") from error
    except Exception as error:
        # As in `open_image`: the decoder of AVIF raises RuntimeError, that of TIFF TypeError.
        raise ImageError("unreadable", f"{name} cannot be opened: {error}") from error
    width, height = image.size
    if check_size is not None:
        check_size(width, height)
    if width * height > max_pixels:
        image.close()
        raise ImageError("too_large", f"{name} has {width} × {height} pixels; the limit is {max_pixels}")
    try:
        check_shape(width, height, name)
    except ImageError:
        image.close()
        raise
    return image


def check_shape(width: int, height: int, name: str = "the image") -> None:
    """Check that no image processor makes gigabytes of an image's shape, in pixels.

    Raises:
        ImageError: a side is longer than `MAX_SIDE`, or than `MAX_RATIO` times the other; `name` is in the message.
    """
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(
            "too_large",
            f"{name} has {width} × {height} pixels; one side may be {MAX_RATIO} times as long as the other: cut it "
            "into parts",
        )
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            "too_large",
            f"{name} has {width} × {height} pixels; a side may have {MAX_SIDE}: make it smaller, or cut it into parts",
        )


def remote_bytes(path: RemotePath, offset: int = 0, length: int | None = None) -> bytes:
    """An image at an address, or a part of the object there.

    Raises:
        ImageError: there is no object, or access to it is denied.
        RemoteError: the store cannot be reached, or the object has changed.
    """
    try:
        return path.read_range(offset, length)
    except FileNotFoundError as error:
        raise ImageError("missing", f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise ImageError("not_an_image", f"{path} is a folder") from error
    except RemoteDeniedError as error:
        raise ImageError("unreadable", str(error)) from error


def _named(content: bytes, name: str) -> io.BytesIO:
    stream = io.BytesIO(content)
    stream.name = name
    return stream


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("missing", f"{path} does not exist{instead_of(path)}") from error
    except (OSError, ValueError) as error:
        raise ImageError("unreadable", f"{str(path)!r} cannot be read: {error}") from error
    if path.is_dir():
        raise ImageError("not_an_image", f"{path} is a folder")
    if size == 0:
        raise ImageError("empty", f"{path} is empty")


def instead_of(path: Path) -> str:
    """A hint for the error, which names the files that a missing one's name probably means; empty if there are none."""
    try:
        near = near_names(path)
    except (OSError, ValueError):
        return ""
    shown = [one.name if one.parent == path.parent else str(one) for one in near]
    return f", but found {' and '.join(shown)}; correct the name in the record" if near else ""


def _beginning(source: Path | BinaryIO) -> bytes:
    if isinstance(source, Path):
        with source.open("rb") as file:
            return file.read(100)
    source.seek(0)
    return source.read(100)


def _name(source: Path | bytes | BinaryIO) -> str:
    if isinstance(source, Path):
        return str(source)
    return str(getattr(source, "name", "the image"))
