"""Short marks of picture files: whether a file is still the one that was scored, without reading all of it.

A mark is a checksum of the file's size and of a piece of its beginning, its middle and its end. The end of a compressed
picture depends on all of it, so another picture has another mark. Times are not in it: a copy of the data has other
times and the same pictures, and a part must not tell when it was written.
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
"""The mark of a picture whose file is missing, empty or cannot be read."""

PIECE = 1024

THREADS = 16
"""They wait for the file system, a network's more than a disk's."""


def has_file(picture: Picture) -> bool:
    """Whether a picture is a file of its own: others are in the source itself, whose fingerprint covers them."""
    return picture.path is not None and picture.length is None and picture.content is None


def mark_of(content: bytes) -> bytes:
    """The mark of a file that holds `content`, `MARK_BYTES` bytes."""
    return _mark(len(content), [content[start : start + PIECE] for start in _starts(len(content))])


def mark_of_file(path: Path) -> bytes:
    """The mark of the file at `path`, `MARK_BYTES` bytes; `ABSENT` where it cannot be read."""
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
    """How many pictures of a shard have other files than when it was scored.

    A picture that was there and is gone does not count: its score is that of the picture it had, and there is nothing
    to score it again from.

    Args:
        items: the records of the shard.
        marks: those of its distinct picture files, in the order the records first name them.
    """
    pictures = dict.fromkeys(item.picture for item in items if isinstance(item, Pair) and has_file(item.picture))
    before = [marks[start : start + MARK_BYTES] for start in range(0, len(marks), MARK_BYTES)]
    if len(pictures) != len(before):
        # A link leads elsewhere by now, so that a name came into the image root or left it.
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
