"""The output files of scoring: per shard, a Parquet file of scores (the part) and one of rejected records.

The rejects are renamed into place before the scores, so an existing part means that its shard is done. The files
contain no timestamps or paths: the same shard gives the same bytes. Each file embeds checksums, which are verified
whenever it is read: see `aligngpt.scoring.checksums`.
"""

import base64
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.scoring.checksums import DamagedError, has_checksums, open_checked, with_checksums

PART_PATTERN, REJECTS_PATTERN = "part-*.parquet", "rejects-*.parquet"

_NUMBERED = re.compile(r"(part|rejects)-([0-9]{5,})\.parquet")

PART_FIELDS = (
    pa.field("record", pa.int64(), nullable=False),
    pa.field("id", pa.string(), nullable=False),
    pa.field("score", pa.float32(), nullable=False),
    pa.field("caption_tokens", pa.int32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("image_hash", pa.string(), nullable=False),
)
"""Columns of a part. `record` is the record's number in its shard, `caption_tokens` the caption's length before
truncation, including the model's special tokens, `width` and `height` the size of the upright image in pixels,
`image_hash` the BLAKE2b (128 bits, hexadecimal) of the image file."""

SHUFFLED_FIELD = pa.field("shuffled", pa.float32())
"""Score of the image with the caption of another pair, see `aligngpt.scoring.separation`; null if there is none. Parts
of earlier versions do not have this column."""

MODEL_PREFIX = "score_"
"""How the names of the score columns of all models but the first begin, which is `score`."""

EMBEDDINGS = ("image_embedding", "text_embedding")
"""Columns with the features of the first model, if they are kept."""

REJECTS_SCHEMA = pa.schema(
    [
        pa.field("record", pa.int64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


PICTURE_MARKS = "aligngpt.pictures"
"""Footer metadata key under which a part stores the marks of its image files, in base64."""


class ScoresError(AlignGPTError):
    """A folder of scores is unusable, or a scoring job has invalid arguments or scored nothing."""


class Reject(NamedTuple):
    """A record without a score, and why."""

    record: int
    id: str | None
    reason: str
    detail: str


@dataclass(frozen=True)
class PartSummary:
    """The outcome of the records of one or more shards.

    Attributes:
        scored: number of records with a score.
        reasons: number of records without a score, by reason.
    """

    scored: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def rejected(self) -> int:
        """Number of records without a score."""
        return sum(self.reasons.values())

    @property
    def records(self) -> int:
        """Number of records read."""
        return self.scored + self.rejected

    def __add__(self, other: "PartSummary") -> "PartSummary":
        reasons = Counter(self.reasons) + Counter(other.reasons)
        return PartSummary(self.scored + other.scored, dict(sorted(reasons.items())))


class PartOutcome(NamedTuple):
    """The outcome of a shard, and the marks of its image files (see `write_part`); empty if its part has none."""

    summary: PartSummary
    marks: bytes


def part_path(out: Path, shard: int) -> Path:
    """Path of a shard's scores."""
    return out / f"part-{shard:05d}.parquet"


def rejects_path(out: Path, shard: int) -> Path:
    """Path of a shard's rejected records."""
    return out / f"rejects-{shard:05d}.parquet"


def part_table(
    *,
    record: Sequence[int],
    id: Sequence[str],
    score: NDArray[np.float32],
    caption_tokens: Sequence[int],
    size: Sequence[tuple[int, int]],
    image_hash: Sequence[str],
    shuffled: NDArray[np.float32] | None = None,
    more: Mapping[str, NDArray[np.float32]] = MappingProxyType({}),
    embeddings: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> pa.Table:
    """Build the table of a part, with rows in the given order.

    Args:
        record: see `PART_FIELDS`, also for the arguments not listed here.
        score: `(pairs,)`.
        size: width and height of each image, in pixels.
        shuffled: values of `SHUFFLED_FIELD`, `(pairs,)`, with NaN for none; the part has no such column if None.
        more: the scores of further models by their column, which begins with `MODEL_PREFIX`, each `(pairs,)`.
        embeddings: image and text features, each `(pairs, dim)`; stored in half precision.
    """
    values = [record, [_text(name) for name in id], score, caption_tokens, *_columns(size), image_hash]
    arrays = [pa.array(column, type=field.type) for column, field in zip(values, PART_FIELDS, strict=True)]
    fields = list(PART_FIELDS)
    if shuffled is not None:
        fields.append(SHUFFLED_FIELD)
        arrays.append(pa.array(shuffled, type=SHUFFLED_FIELD.type, from_pandas=True))
    for name, scores in more.items():
        fields.append(pa.field(name, pa.float32(), nullable=False))
        arrays.append(pa.array(scores, type=pa.float32()))
    for name, features in zip(EMBEDDINGS, embeddings or (), strict=bool(embeddings)):
        array = pa.FixedSizeListArray.from_arrays(pa.array(features.astype(np.float16).ravel()), features.shape[1])
        fields.append(pa.field(name, array.type, nullable=False))
        arrays.append(array)
    return pa.table(arrays, schema=pa.schema(fields))


def write_part(out: Path, shard: int, rows: pa.Table, rejects: Iterable[Reject], marks: bytes = b"") -> PartSummary:
    """Write the part and the rejects of a shard; if the process is killed or the disk full, it is done or not done.

    Args:
        out: folder of the scores.
        shard: the shard's number.
        rows: see `part_table`.
        rejects: the records without a score, in the order in which to write them.
        marks: the marks of its image files, see `aligngpt.scoring.picture_marks`.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    refused = [
        reject._replace(id=None if reject.id is None else _text(reject.id), detail=_text(reject.detail))
        for reject in rejects
    ]
    columns = zip(*refused, strict=True) if refused else ((),) * len(REJECTS_SCHEMA)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, REJECTS_SCHEMA, strict=True)]
    # Otherwise an older part could be paired with rejects that are not its own.
    part_path(out, shard).unlink(missing_ok=True)
    _write(rejects_path(out, shard), pa.table(arrays, schema=REJECTS_SCHEMA))
    _write(part_path(out, shard), rows, {PICTURE_MARKS: base64.b64encode(marks).decode()} if marks else None)
    return PartSummary(rows.num_rows, dict(sorted(Counter(reject.reason for reject in refused).items())))


def part_summary(out: Path, shard: int) -> PartSummary | None:
    """The outcome of a shard; None if it is not done or its files are damaged. See `read_part_outcome`."""
    found = read_part_outcome(out, shard)
    return None if found is None else found.summary


def read_part_outcome(out: Path, shard: int) -> PartOutcome | None:
    """The outcome of a shard and the marks of its images; None if it is not done or its files are damaged.

    The number of pairs comes from the file's footer. Verifies the checksums of the rejects, of all `PART_FIELDS` and of
    the scores of further models. Those of the other columns, such as the embeddings, which are far larger, are verified
    only when these are read.
    """
    names = [field.name for field in PART_FIELDS]
    try:
        with open_checked(part_path(out, shard), lambda name: name in names or name.startswith(MODEL_PREFIX)) as part:
            metadata = part.metadata.metadata or {}
            # It may be another kind of file, with other columns.
            if not set(names) <= set(part.schema_arrow.names):
                return None
            if not has_checksums(metadata):
                # Nothing else would notice that the content of a part of an earlier version is damaged.
                part.read(columns=["record", "score"])
            scored, marks = part.metadata.num_rows, _marks_in(metadata)
        with open_checked(rejects_path(out, shard)) as rejects:
            reasons = rejects.read(columns=["reason"])["reason"]
    except (OSError, pa.ArrowException, KeyError, ValueError, DamagedError):
        return None
    return PartOutcome(PartSummary(scored, dict(sorted(Counter(reasons.to_pylist()).items()))), marks)


def existing_parts(out: Path) -> set[int]:
    """Numbers of the shards that have both a part and rejects, from one listing of the folder."""
    numbers: dict[str, set[int]] = {"part": set(), "rejects": set()}
    with suppress(FileNotFoundError), os.scandir(out) as entries:
        for entry in entries:
            if found := _NUMBERED.fullmatch(entry.name):
                numbers[found[1]].add(int(found[2]))
    return numbers["part"] & numbers["rejects"]


def record_count(out: Path, shard: int) -> int:
    """Number of records in a shard, with or without a score.

    Raises:
        ScoresError: a file of the shard is missing or damaged.
    """
    total = 0
    for path in (part_path(out, shard), rejects_path(out, shard)):
        with _readable(path), open_checked(path, []) as file:
            total += file.metadata.num_rows
    return total


def read_part(out: Path, shard: int, columns: Sequence[str]) -> pa.Table:
    """Read columns of one part.

    Raises:
        ScoresError: the part is missing or damaged.
    """
    path = part_path(out, shard)
    with _readable(path), open_checked(path, columns) as file:
        return file.read(columns=list(columns))


def score_column_names(out: Path, shard: int) -> list[str]:
    """The columns of a part that contain a score of every pair: of its models, and derived ones.

    Raises:
        ScoresError: the part is missing or damaged.
    """
    path = part_path(out, shard)
    with _readable(path), open_checked(path, ()) as file:
        return [one.name for one in file.schema_arrow if pa.types.is_floating(one.type) and not one.nullable]


def read_whole_part(out: Path, shard: int) -> pa.Table:
    """Read all columns of one part, without the metadata of its footer.

    Raises:
        ScoresError: the part is missing or damaged.
    """
    path = part_path(out, shard)
    with _readable(path), open_checked(path) as file:
        return file.read().replace_schema_metadata(None)


def part_metadata(out: Path, shard: int) -> dict[str, str]:
    """The key-value metadata of a part's footer, without Arrow's own.

    Raises:
        ScoresError: the part is missing or damaged.
    """
    path = part_path(out, shard)
    with _readable(path), open_checked(path, ()) as file:
        found = file.metadata.metadata or {}
    return {name.decode(): text.decode() for name, text in found.items() if name != b"ARROW:schema"}


def read_batches(out: Path, shards: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all parts in source order, with the shard number as first column.

    Args:
        out: folder of the scores.
        shards: number of parts that must exist.
        columns: columns to read; all when None.

    Raises:
        ScoresError: a part is missing or damaged, or lacks a column.
    """
    for shard in range(shards):
        path = part_path(out, shard)
        with _readable(path), open_checked(path, columns) as file:
            for batch in file.iter_batches(columns=None if columns is None else list(columns)):
                _check_columns(path, batch, columns)
                number = pa.array(np.full(batch.num_rows, shard, dtype=np.int32))
                batch = batch.replace_schema_metadata(None)
                yield batch.add_column(0, pa.field("shard", pa.int32(), nullable=False), number)


def write_whole(path: Path, content: bytes | pa.Buffer) -> None:
    """Write a file atomically.

    Raises:
        OSError: the disk is full or the folder is not writable; the message names the file and says what to do.
    """
    try:
        with atomic_write(path, "wb") as file:
            file.write(content)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror or error}; this file was not written. Free some space or make the folder writable, then "
            "run the same command again: it resumes from here",
            str(path),
        ) from error


def _write(path: Path, table: pa.Table, metadata: Mapping[str, str] | None = None) -> None:
    write_whole(path, with_checksums(table, metadata))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn read errors into one that names the file and says what to do."""
    try:
        yield
    except (OSError, pa.ArrowException, DamagedError) as error:
        raise ScoresError(
            f"{path} cannot be read ({error}); remove it and run the command that wrote it again: it will "
            "score this part again"
        ) from error


def _check_columns(path: Path, batch: pa.RecordBatch, columns: Sequence[str] | None) -> None:
    if missing := [name for name in columns or () if name not in batch.schema.names]:
        raise ScoresError(
            f"{path} has no column {', '.join(missing)}; embeddings exist only if the source was scored with them, "
            f"{SHUFFLED_FIELD.name} only if this version of aligngpt began the folder"
        )


def _marks_in(metadata: Mapping[bytes, bytes]) -> bytes:
    return base64.b64decode(metadata.get(PICTURE_MARKS.encode(), b""))


def _columns(size: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [width for width, _ in size], [height for _, height in size]


def _text(value: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode, with escapes."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")
