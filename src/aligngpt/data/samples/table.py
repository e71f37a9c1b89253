"""A sample as a row of an Arrow table, with what is asked of all samples at once in columns of numbers."""

import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from aligngpt.data.records.sample import Role, Sample, Turn
from aligngpt.data.sources.base import StoredAt

# Bytes, not strings: a file name may hold what is no Unicode.
SCHEMA = pa.schema(
    [
        ("id", pa.binary()),
        ("turns", pa.list_(pa.binary())),
        ("images", pa.list_(pa.binary())),
        ("level", pa.int64()),
        ("score", pa.float64()),
        ("kind", pa.binary()),
        ("record", pa.int64()),
        ("system", pa.binary()),
        ("accepted", pa.list_(pa.binary())),
        ("characters", pa.int64()),
        ("image_count", pa.int64()),
        ("key", pa.int64()),
        # Where the picture is in an archive (see `StoredAt`); no file where it is one below the image root.
        ("file", pa.int64()),
        ("group", pa.int64()),
        ("start", pa.int64()),
        ("length", pa.int64()),
    ]
)

SAMPLE_COLUMNS = range(9)
"""The columns that a sample is made of; the others are worked out from it, or say where its picture is."""

NOWHERE = StoredAt(-1, -1, 0, 0)

_ROLES: tuple[Role, Role] = ("user", "assistant")


def image_key(images: Sequence[str]) -> int:
    """A number, 64 bits with sign, that is equal where the names of the images are."""
    text = "\0".join(images).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)


def row_of(sample: Sample, stored: StoredAt | None = None, key: int | None = None) -> dict[str, Any]:
    """The row of a sample.

    Args:
        sample: to be kept.
        stored: where its picture is in an archive.
        key: a number that is equal where the images are; that of their names when None.

    Raises:
        OverflowError: a number is too large for its column.
    """

    def encoded(text: str) -> bytes:
        return text.encode(errors="surrogatepass")

    level = sample.level or 0
    if level >= 1 << 31:
        raise OverflowError
    return {
        "id": encoded(sample.id),
        "turns": [encoded(turn.text) for turn in sample.turns],
        "images": [encoded(name) for name in sample.images],
        "level": level,
        "score": None if sample.score is None else float(sample.score),
        "kind": None if sample.kind is None else encoded(sample.kind),
        "record": sample.record,
        "system": None if sample.system is None else encoded(sample.system),
        "accepted": [encoded(answer) for answer in sample.accepted],
        "characters": sum(len(turn.text) for turn in sample.turns),
        "image_count": len(sample.images),
        # Of samples without an image the id tells which they are.
        "key": image_key(sample.images or ("", sample.id)) if key is None else key,
    } | (stored or NOWHERE)._asdict()


def sample_of(row: dict[str, Any]) -> Sample:
    """The sample of a row."""

    def decoded(text: bytes) -> str:
        return text.decode(errors="surrogatepass")

    return Sample(
        id=decoded(row["id"]),
        turns=tuple(Turn(_ROLES[number % 2], decoded(text)) for number, text in enumerate(row["turns"])),
        images=tuple(decoded(name) for name in row["images"]),
        level=row["level"] or None,
        score=row["score"],
        kind=None if row["kind"] is None else decoded(row["kind"]),
        record=row["record"],
        system=None if row["system"] is None else decoded(row["system"]),
        accepted=tuple(decoded(answer) for answer in row["accepted"]),
    )
