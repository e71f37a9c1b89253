"""Writers for levels: JSON records, a Parquet table, or the list of kept ids."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from aligngpt.data.samples.levels_table import SOURCE_KEY
from aligngpt.data.sources.fields import ColumnNames
from aligngpt.data.sources.values import is_plain_json, read_values
from aligngpt.files import atomic_write
from aligngpt.levels.json_scores import read_json
from aligngpt.levels.score_tables import ScoreBatch
from aligngpt.scoring.score_files import ScoresError

JSON_SUFFIXES, TABLE_SUFFIX, UIDS_SUFFIXES = (".json", ".jsonl"), ".parquet", (".npy", ".txt")

LEVEL_FIELDS = (
    pa.field("id", pa.string(), nullable=False),
    pa.field("score", pa.float64(), nullable=False),
    pa.field("level", pa.int32(), nullable=False),
)
"""First columns of a table of levels; `level` is 1…N. They replace data columns with the same names."""

RECORD_FIELDS = ("similarity", "score")
"""The fields added to JSON records, in place of those with the same names."""

UID = np.dtype([("f0", np.uint64), ("f1", np.uint64)])
"""DataComp's uid, 32 hexadecimal digits, as two integers."""


class LevelWriter(ABC):
    """Writes levels in batches, in the order of the data."""

    @abstractmethod
    def write(self, batch: ScoreBatch, levels: NDArray[np.int64]) -> None:
        """Write rows and their levels 1…N, `(rows,)`."""

    def check(self, rows: Iterable[tuple[ScoreBatch, NDArray[np.int64]]]) -> None:
        """Check, before any output replaces a file, that the output says of all rows what it is read for.

        Args:
            rows: the batches that were written, with their levels, once more.

        Raises:
            ScoresError: it does not.
        """
        return


class _Records(LevelWriter):
    """Writes the JSON records that have a score, with the fields `similarity` (the level minus one) and `score`."""

    def __init__(self, file: IO[str], source: Path, names: ColumnNames, *, is_array: bool) -> None:
        self._file = file
        self._source = source
        # Whole records if they were scored as such, else the columns that were scored.
        whole = not names.given and is_plain_json(source)
        self._records = enumerate(read_json(source)) if whole else read_values(source, names, with_numbers=False)
        self._is_array = is_array
        self._any = False

    def write(self, batch: ScoreBatch, levels: NDArray[np.int64]) -> None:
        places = zip(batch.numbers.tolist(), batch.scores.tolist(), levels.tolist(), strict=True)
        for number, score, level in places:
            record = next((value for at, value in self._records if at == number), None)
            if not isinstance(record, dict):
                raise ScoresError(f"{self._source} no longer has a record {number}; score it again")
            try:
                line = json.dumps(
                    record | {"similarity": level - 1, "score": score}, ensure_ascii=False, allow_nan=False
                )
            except ValueError as error:
                raise ScoresError(
                    f"record {number} of {self._source} has a field that is NaN or outside the range of numbers, which "
                    "JSON cannot represent; replace it with null, or remove the record"
                ) from error
            # Text that UTF-8 cannot encode (half a surrogate pair) is written as the JSON escape it was read from.
            if self._any:
                self._file.write(",\n" if self._is_array else "\n")
            self._file.write(line.encode(errors="backslashreplace").decode())
            self._any = True

    def close(self) -> None:
        """Write the end of the file after the last record."""
        self._file.write("\n" if self._any else "")
        self._file.write("]\n" if self._is_array else "")


class _Table(LevelWriter):
    def __init__(self, file: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._file = file
        self._schema = schema

    def write(self, batch: ScoreBatch, levels: NDArray[np.int64]) -> None:
        columns = {"id": batch.ids, "score": pa.array(batch.scores), "level": pa.array(levels, type=pa.int32())}
        if batch.columns is not None:
            columns = dict(zip(batch.columns.schema.names, batch.columns.columns, strict=True)) | columns
        arrays = [columns[name] for name in self._schema.names]
        self._file.write_table(pa.Table.from_arrays(arrays, schema=self._schema))


class _Uids(LevelWriter):
    """Writes the ids of some levels. Holds the hashes of the kept ids, 8 bytes each, until `check` has sorted them."""

    def __init__(self, path: Path, keep: Set[int]) -> None:
        self._path = path
        self._keep = sorted(keep)
        self._hashes: list[NDArray[np.int64]] = []

    def _kept(self, batch: ScoreBatch, levels: NDArray[np.int64]) -> pa.Array:
        """The ids of a batch whose levels are kept."""
        ids = batch.ids.filter(pa.array(np.isin(levels, self._keep)))
        self._hashes.append(_hashes(ids))
        return ids

    def check(self, rows: Iterable[tuple[ScoreBatch, NDArray[np.int64]]]) -> None:
        """Check that the ids tell which rows are kept.

        Raises:
            ScoresError: a row that is kept has the id of one that is not, such as equal keys in several tar files.
        """
        kept = np.concatenate([np.empty(0, dtype=np.int64), *self._hashes])
        self._hashes.clear()
        kept.sort()
        for batch, levels in rows:
            others = batch.ids.filter(pa.array(np.isin(levels, self._keep, invert=True)))
            hashes = _hashes(others)
            places = np.searchsorted(kept, hashes)
            found = places < len(kept)
            found[found] = kept[places[found]] == hashes[found]
            if found.any():
                raise ScoresError(
                    f"the id {others[int(found.argmax())].as_py()!r:.80} belongs to a row that is kept and to one that "
                    f"is not, so {self._path} would not tell which to keep; give each row its own id, or write the "
                    "level of each row with --out instead"
                )


def _hashes(ids: pa.Array) -> NDArray[np.int64]:
    return np.fromiter(map(hash, ids.to_pylist()), dtype=np.int64, count=len(ids))


class _TextUids(_Uids):
    def __init__(self, file: IO[str], path: Path, keep: Set[int]) -> None:
        super().__init__(path, keep)
        self._file = file

    def write(self, batch: ScoreBatch, levels: NDArray[np.int64]) -> None:
        kept = self._kept(batch, levels).to_pylist()
        # Readers differ in what they treat as a line break; reject ids with any kind.
        if wrong := next((id for id in kept if id.splitlines() != [id]), None):
            raise ScoresError(
                f"the id {wrong!r:.80} contains a line break, and {self._path} has one id per line; write the levels "
                "as .parquet with --out, and select the ids there"
            )
        if "" in kept:
            raise ScoresError(f"an id is empty, and {self._path} has one id per line; give each record an id")
        self._file.writelines(f"{id}\n" for id in kept)


class _BinaryUids(_Uids):
    """Collects the uids as numbers.

    Attributes:
        parts: arrays of the uids so far, in the order of the data.
    """

    def __init__(self, path: Path, keep: Set[int]) -> None:
        super().__init__(path, keep)
        self.parts = [np.empty(0, dtype=UID)]

    def write(self, batch: ScoreBatch, levels: NDArray[np.int64]) -> None:
        ids = self._kept(batch, levels)
        is_uid = pc.match_substring_regex(ids, "^[0-9a-fA-F]{32}$")
        if not pc.all(is_uid).as_py() and len(ids):
            wrong = ids.filter(pc.invert(is_uid))[0].as_py()
            raise ScoresError(
                f"the id {wrong!r:.80} is not 32 hexadecimal digits, as {self._path} requires; write "
                f"{self._path.with_suffix('.txt').name} instead, which takes any ids, one per line"
            )
        numbers = np.frombuffer(bytes.fromhex("".join(ids.to_pylist())), dtype=">u8").reshape(-1, 2)
        uids = np.empty(len(numbers), dtype=UID)
        uids["f0"], uids["f1"] = numbers[:, 0], numbers[:, 1]
        self.parts.append(uids)


@contextmanager
def records_writer(out: Path, source: Path, names: ColumnNames | None = None) -> Iterator[LevelWriter]:
    """Write the records of a source atomically: as a JSON array if `out` ends in `.json`, else as JSON lines.

    Args:
        out: the file to write.
        source: see `read_values`.
        names: the columns that were scored; None for JSON records, which are written with all their fields.

    Raises:
        ScoresError: a record that has a score is missing, or cannot be written as JSON.
        OSError: the disk is full or the folder cannot be written.
    """
    is_array = out.suffix == ".json"
    with atomic_write(out) as file:
        file.write("[\n" if is_array else "")
        records = _Records(file, source, names or ColumnNames(), is_array=is_array)
        yield records
        records.close()


@contextmanager
def table_writer(out: Path, columns: pa.Schema) -> Iterator[LevelWriter]:
    """Write a Parquet file with `LEVEL_FIELDS` and the columns of the batches, atomically.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    own = {field.name for field in LEVEL_FIELDS}
    others = [field for field in columns if field.name not in own]
    # Other metadata, such as that of pandas, would describe columns that are not there.
    metadata = {key: value for key, value in (columns.metadata or {}).items() if key == SOURCE_KEY}
    schema = pa.schema([*LEVEL_FIELDS, *others], metadata)
    with atomic_write(out, "wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        yield _Table(writer, schema)


@contextmanager
def uids_writer(out: Path, keep: Set[int]) -> Iterator[LevelWriter]:
    """Write the ids of some levels, atomically.

    Args:
        out: `.txt` for one id per line, in the order of the data; otherwise `.npy`, a sorted array of `UID` as
            DataComp's tools read it.
        keep: the levels 1…N whose ids are written.

    Raises:
        ScoresError: an id for `.npy` is not 32 hexadecimal digits, or one for `.txt` is empty or has a line break.
        OSError: the disk is full or the folder cannot be written.
    """
    if out.suffix == ".txt":
        with atomic_write(out) as file:
            yield _TextUids(file, out, keep)
        return
    writer = _BinaryUids(out, keep)
    yield writer
    uids = np.concatenate(writer.parts)
    with atomic_write(out, "wb") as file:
        np.save(file, uids[np.lexsort((uids["f1"], uids["f0"]))])


def parse_levels(text: str, num_levels: int) -> frozenset[int]:
    """The levels in a string such as `5-8` or `1,3,7-8`.

    Raises:
        ScoresError: the string has another format, or a level is outside 1…N.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        found: Any = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= low <= high <= num_levels:
            raise ScoresError(f"expected levels from 1 to {num_levels}, such as 2-{num_levels} or 1,2, found {text!r}")
        chosen.update(range(low, high + 1))
    return frozenset(chosen)
