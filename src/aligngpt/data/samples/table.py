"""Conversion between samples and rows of an Arrow table, with numeric columns for vectorised access."""

import hashlib
from typing import Any

import pyarrow as pa

from aligngpt.data.images.keys import image_key
from aligngpt.data.records.sample import Role, Sample, Turn
from aligngpt.data.sources.base import StoredAt

# Bytes, not strings: a file name may not be valid Unicode.
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
        ("context", pa.list_(pa.int64())),
        ("characters", pa.int64()),
        ("image_count", pa.int64()),
        ("interleaved", pa.int64()),
        ("key", pa.int64()),
        ("system_key", pa.int64()),
        # Location of the image in an archive (see `StoredAt`); `file` is -1 if it is a file below the image root.
        ("file", pa.int64()),
        ("group", pa.int64()),
        ("start", pa.int64()),
        ("length", pa.int64()),
    ]
)

SAMPLE_COLUMNS = range(10)
"""The columns a sample is made from; the others are derived from it or locate its image."""

NOWHERE = StoredAt(-1, -1, 0, 0)

_ROLES: tuple[Role, Role] = ("user", "assistant")


def row_of(sample: Sample, stored: StoredAt | None = None, key: int | None = None) -> dict[str, Any]:
    """The table row of a sample.

    Args:
        sample: the sample.
        stored: location of its image in an archive.
        key: a number that is equal for equal images; the hash of their names when None.

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
        "context": list(sample.context),
        "characters": sum(len(turn.text) for turn in sample.turns),
        "image_count": len(sample.images),
        "interleaved": int(sample.interleaved),
        # Samples without an image are identified by their id.
        "key": image_key(sample.images or ("", sample.id)) if key is None else key,
        "system_key": 0 if sample.system is None else _hash(encoded(sample.system)),
    } | (stored or NOWHERE)._asdict()


def sample_of(row: dict[str, Any]) -> Sample:
    """The sample of a table row."""

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
        context=tuple(row["context"]),
    )


def _hash(content: bytes) -> int:
    """A signed 64-bit hash."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)
