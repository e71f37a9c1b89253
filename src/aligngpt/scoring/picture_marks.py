"""Short marks of image files, which show whether a file has changed since it was scored, without reading all of it.

A mark is a checksum of the file's size and of a piece of its beginning, middle and end. The end of a compressed image
depends on all of it, so different images have different marks. File times are not included: a copy of the data has
other times but the same images, and a part must not depend on when it was written.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aligngpt.data.images.reference import Picture
from aligngpt.data.records.pairs import Pair, Unusable

MARK_BYTES = 4
ABSENT = bytes(MARK_BYTES)
"""The mark of an image whose file is missing, empty or unreadable."""

PIECE = 1024

THREADS = 16
"""Number of threads that read files; they mostly wait for the file system, above all on network storage."""


def has_file(picture: Picture) -> bool:
    """Whether an image is a separate file; others are stored in the source, whose fingerprint covers them."""
    return picture.path is not None and picture.length is None and picture.content is None


def mark_of(content: bytes) -> bytes:
    """The mark of a file with this content, `MARK_BYTES` bytes long."""
    return _mark(len(content), [content[start : start + PIECE] for start in _starts(len(content))])


def mark_of_file(path: Path) -> bytes:
    """The mark of the file at `path`, `MARK_BYTES` bytes long; `ABSENT` if it cannot be read."""
    pieces = []
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for start in _starts(size):
                file.seek(start)
                pieces.append(file.read(PIECE))
    except (OSError, ValueError):
        return ABSENT
    return _mark(size, pieces)


def changed_pictures(items: Iterable[Pair | Unusable], marks: bytes) -> int:
    """Number of image files of a shard that changed since it was scored.

    A file that has been deleted does not count: its score is still that of the original image, and it cannot be scored
    again.

    Args:
        items: the records of the shard.
        marks: the marks of its distinct image files, in the order in which the records first name them.
    """
    pictures = dict.fromkeys(item.picture for item in items if isinstance(item, Pair) and has_file(item.picture))
    before = [marks[start : start + MARK_BYTES] for start in range(0, len(marks), MARK_BYTES)]
    if len(pictures) != len(before):
        # A symbolic link now points elsewhere, so that a name moved into or out of the image root.
        return abs(len(pictures) - len(before))
    now = _marks_of_files([picture.path for picture in pictures if picture.path is not None])
    return sum(new not in (old, ABSENT) for old, new in zip(before, now, strict=True))


def _marks_of_files(paths: Sequence[Path]) -> list[bytes]:
    with ThreadPoolExecutor(THREADS, thread_name_prefix="marks") as pool:
        return list(pool.map(mark_of_file, paths))


def _starts(size: int) -> Sequence[int]:
    return (0,) if size <= PIECE else (0, (size - PIECE) // 2, size - PIECE)


def _mark(size: int, pieces: Sequence[bytes]) -> bytes:
    if not size:
        return ABSENT
    found = hashlib.blake2b(size.to_bytes(8, "little") + b"".join(pieces), digest_size=MARK_BYTES).digest()
    return found if found != ABSENT else ABSENT[:-1] + b"\1"
