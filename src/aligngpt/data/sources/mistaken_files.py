"""Recognize files that are often found in place of an image or data file, and images in unsupported formats."""

from collections.abc import Collection

_PAGES = (b"<!doctype html", b"<html")
_LFS_POINTER = b"version https://git-lfs"
_UNREAD = {
    b"\0\0\0\x0cjP  \r\n": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"\0\0\0\x0cJXL \r\n": "a JPEG XL",
    b"\xff\x0a": "a JPEG XL",
    b"ftypheic": "a HEIC",
    b"ftypheix": "a HEIC",
    b"ftypmif1": "a HEIF",
    b"ftypavif": "an AVIF",
    b"%!PS": "an EPS",
    b"%PDF": "a PDF",
    b"<svg": "an SVG",
    b"8BPS": "a Photoshop",
}


def mistaken_for(head: bytes) -> str | None:
    """What a file is, by its first bytes, if it stands in for one that was never downloaded; None for anything else."""
    if head.startswith(_LFS_POINTER):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull`"
    if head.lstrip()[:20].lower().startswith(_PAGES):
        return "is a web page, probably an error page of the server; download the file again"
    return None


def not_read(head: bytes, formats: Collection[str]) -> str | None:
    """What an image is, by its first bytes, if its format is known but none of `formats`; None for anything else."""
    name = next((name for mark, name in _UNREAD.items() if head.startswith(mark) or head[4:].startswith(mark)), None)
    if name is None or name.partition(" ")[2] in formats:
        return None
    return f"is {name} image, which is not supported; convert it to PNG or JPEG"
