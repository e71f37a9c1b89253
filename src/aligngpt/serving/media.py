"""Pictures out of the image URLs of a request: untrusted, so bounded before anything is decoded."""

import binascii
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from aligngpt.data.images.opening import ImageError, open_image
from aligngpt.errors import AlignGPTError
from aligngpt.serving.addresses import download, is_host_name, parse_address, too_many_bytes
from aligngpt.serving.media_errors import MediaError

__all__ = ["MediaError", "MediaPolicy", "pictures_from_urls"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MEDIA_TYPES = {
    "image/gif": "GIF",
    "image/jpeg": "JPEG",
    "image/jpg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
}
UNSTATED = ("", "application/octet-stream", "binary/octet-stream")
"""Media types with which a host says nothing about a file."""

MAX_SCANS = 100
"""A progressive JPEG has about ten scans. Each costs as much as the whole image, so thousands would take minutes."""

_DATA = re.compile(r"data:([a-z0-9.+/-]*);base64,", re.IGNORECASE)
# One FF before the marker is enough: with `\xff+`, a run of them would be read again from each.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")


@dataclass(frozen=True, slots=True)
class MediaPolicy:
    """Which pictures a server accepts.

    Attributes:
        allow_hosts: hosts that images may be downloaded from, by exact name in lower case; none by default.
        max_bytes: size of an encoded image.
        max_pixels: width × height of an image, and of all images of a request together.
        max_side: width or height of an image. A processor that pads to a square makes one of this side.
        max_ratio: longer side over shorter side of an image. A processor that scales the shorter side up to its own
            makes an image of this many times its pixels.
        max_pictures: images in a request.
        timeout: seconds for all downloads of a request together.

    Raises:
        AlignGPTError: a host is not a plain host name, or a limit is not positive.
    """

    allow_hosts: tuple[str, ...] = ()
    max_bytes: int = 20 << 20
    max_pixels: int = 40_000_000
    max_side: int = 10_000
    max_ratio: float = 100.0
    max_pictures: int = 16
    timeout: float = 10.0

    def __post_init__(self) -> None:
        for host in self.allow_hosts:
            if not is_host_name(host):
                raise AlignGPTError(
                    f"{host!r} cannot be allowed as a host for images: give a name such as images.example.org, in "
                    "lower case, without scheme, port or wildcard; IP addresses are not accepted"
                )
        for name in ("max_bytes", "max_pixels", "max_side", "max_ratio", "max_pictures", "timeout"):
            if not getattr(self, name) > 0:
                raise AlignGPTError(f"{name} must be more than 0, not {getattr(self, name)}")


def pictures_from_urls(urls: Sequence[str], policy: MediaPolicy) -> list[Image.Image]:
    """The images of `data:` URLs, or of `https` addresses of allowed hosts, upright and RGB, in order.

    They are decoded as for training (see `open_image`): rotated by their EXIF orientation, transparency composited
    onto white, the first frame of an animation. A string from a client is never a path.

    Raises:
        MediaError: there are too many, they have too many pixels together, or one cannot be used.
    """
    if len(urls) > policy.max_pictures:
        raise MediaError(
            "too_many_images", f"the request has {len(urls)} images; the limit is {policy.max_pictures}: send fewer"
        )
    deadline = time.monotonic() + policy.timeout
    pictures: list[Image.Image] = []
    left = policy.max_pixels
    for url in urls:
        content = _content(url, policy, deadline)
        picture = _decoded(content, policy, left)
        left -= picture.width * picture.height
        pictures.append(picture)
    return pictures


def _content(url: str, policy: MediaPolicy, deadline: float) -> bytes:
    """The encoded image, whose format is the one that was stated."""
    if url[:5].lower() == "data:":
        stated, content = _from_data(url, policy.max_bytes)
    elif not policy.allow_hosts:
        raise MediaError(
            "invalid_image_url",
            "this server accepts images only inside the request, as data: URLs (data:image/png;base64,…), and fetches "
            "no addresses or files",
        )
    else:
        address = parse_address(url, policy.allow_hosts)
        left = max(0.001, deadline - time.monotonic())
        content, stated = download(address, max_bytes=policy.max_bytes, timeout=left)
        if stated in UNSTATED:
            stated = next((kind for kind, name in MEDIA_TYPES.items() if name == _format(content)), stated)
    if stated not in MEDIA_TYPES:
        raise MediaError(
            "unsupported_image_media_type",
            f"the image's media type is {stated[:60]!a}; this server reads image/png, image/jpeg, image/webp "
            "and image/gif",
        )
    if not content:
        raise MediaError("empty_image_file", "the image file is empty")
    found = _format(content)
    if found is None:
        raise MediaError(
            "unsupported_image_media_type", f"the image's content is not {_one_of()}: convert it to PNG or JPEG"
        )
    if found != MEDIA_TYPES[stated]:
        raise MediaError(
            "unsupported_image_media_type",
            f"the image is stated to be {stated} but its content is {found}: correct either",
        )
    return content


def _one_of() -> str:
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def _from_data(url: str, max_bytes: int) -> tuple[str, bytes]:
    """The media type in lower case and the bytes of a `data:` URL."""
    found = _DATA.match(url)
    if found is None:
        raise MediaError(
            "invalid_image_url",
            "the image's data: URL must begin with data:TYPE;base64, where TYPE is image/png, image/jpeg, image/webp "
            "or image/gif, without further parameters",
        )
    # Checked on the text, so that nothing of a file that is too large is decoded or copied.
    if (len(url) - found.end()) // 4 * 3 - 2 > max_bytes:
        raise too_many_bytes(max_bytes)
    try:
        if url.endswith("==="):
            # Some versions of Python accept it even in their strict mode.
            raise ValueError("too much padding")
        content = binascii.a2b_base64(url[found.end() :], strict_mode=True)
    except ValueError as error:
        raise MediaError(
            "invalid_base64_image",
            "the image's data: URL is not valid base64: use the alphabet with + and /, padding with =, and no spaces "
            "or line breaks",
        ) from error
    if len(content) > max_bytes:
        raise too_many_bytes(max_bytes)
    return found[1].lower(), content


def _format(content: bytes) -> str | None:
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return "WEBP" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


def _decoded(content: bytes, policy: MediaPolicy, max_pixels: int) -> Image.Image:
    def check(width: int, height: int) -> None:
        if width * height > policy.max_pixels or max(width, height) > policy.max_side:
            raise _too_large(policy, f"the image has {width} × {height} pixels")
        if width * height > max_pixels:
            raise _too_large(policy, "the images of the request together have more pixels than are read")
        if max(width, height) > policy.max_ratio * min(width, height):
            raise MediaError(
                "image_too_large",
                f"the image has {width} × {height} pixels; one side may be {policy.max_ratio:g} times as long as the "
                "other: cut it into parts",
            )

    try:
        # The decoder of WebP reserves memory for the whole canvas when a file is opened.
        if content[12:16] == b"VP8X":
            check(1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little"))
        if _format(content) == "JPEG" and _scans(content) > MAX_SCANS:
            raise MediaError(
                "image_parse_error", f"the JPEG has more than {MAX_SCANS} scans: save it again with ordinary settings"
            )
        return open_image(content, max_pixels=max_pixels, formats=FORMATS, check_size=check)
    except MediaError:
        raise
    except ImageError as error:
        if error.reason == "too_large":
            raise _too_large(policy, "the image has more pixels than are read") from error
        raise _damaged() from error
    except Exception as error:
        # Decoders raise whatever they meet in damaged files: struct.error, KeyError, RecursionError, …
        raise _damaged() from error


def _damaged() -> MediaError:
    return MediaError(
        "image_parse_error", "the image is damaged or cut short and cannot be decoded: save it again as PNG or JPEG"
    )


def _too_large(policy: MediaPolicy, what: str) -> MediaError:
    return MediaError(
        "image_too_large",
        f"{what}; the limit is {policy.max_pixels} pixels, for all images of a request together, and {policy.max_side} "
        "for a side: send smaller ones",
    )


def _scans(content: bytes) -> int:
    """The number of scans of a JPEG, up to its end marker or damage; what follows it (a video, say) is not counted."""
    scans, at = 0, 2
    while (found := _MARKER.search(content, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker == 0xD9:
            break
        if marker == 0xDA:
            scans += 1
        if marker != 0x01:
            at += int.from_bytes(content[at : at + 2], "big")
    return scans
