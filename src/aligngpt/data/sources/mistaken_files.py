"""Recognize files that are often found in place of an image or data file that was never downloaded."""

_PAGES = (b"<!doctype html", b"<html")
_LFS_POINTER = b"version https://git-lfs"


def mistaken_for(head: bytes) -> str | None:
    """What a file is, by its first bytes, if it stands in for one that was never downloaded; None for anything else."""
    if head.startswith(_LFS_POINTER):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull`"
    if head.lstrip()[:20].lower().startswith(_PAGES):
        return "is a web page, probably an error page of the server; download the file again"
    return None
