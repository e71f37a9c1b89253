"""What often stands where a picture or a file of data should be, because that was never fetched."""

_PAGES = (b"<!doctype html", b"<html")
_LFS_POINTER = b"version https://git-lfs"


def mistaken_for(head: bytes) -> str | None:
    """What stands, by its first bytes, where a file should be that was never fetched; None for anything else."""
    if head.startswith(_LFS_POINTER):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull`"
    if head.lstrip()[:20].lower().startswith(_PAGES):
        return "is a web page, probably an error page of the server; fetch the file again"
    return None
