"""Reads scores from a field of JSON records, and the records of a JSON file one at a time."""

import math
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from aligngpt.data.sources.byte_ranges import json_of, read_lines, text_start
from aligngpt.data.sources.json_array import read_array
from aligngpt.data.sources.json_keys import RepeatedKeys
from aligngpt.levels.columns import did_you_mean, lowest_rating
from aligngpt.levels.score_tables import (
    SIMILARITY,
    ScoreBatch,
    ScoreTable,
    copied_columns,
    default_id_column,
    levels_not_scores,
)
from aligngpt.scoring.places import same_place
from aligngpt.scoring.score_files import ScoresError

RECORDS_AT_ONCE = 10_000


class JsonScores(ScoreTable):
    """Scores from a field of a JSON array or JSON lines; records without the field, and broken lines, have no score.

    Args:
        path: the file.
        column: name of the score field; of a list of ratings, the lowest is the score (see `lowest_rating`).
        id_column: name of the id field; the default one, if there is one, if None.
    """

    def __init__(self, path: Path, column: str, id_column: str | None = None) -> None:
        self.path = path
        self.id_column = id_column
        self.column = column
        self._schema: pa.Schema | None = None
        self._names: set[str] = set()

    @property
    def names(self) -> Collection[str]:
        return self._names

    @property
    def copied(self) -> frozenset[str]:
        return copied_columns(self.column, self.id_column)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def records(self) -> Path | None:
        return self.path

    @property
    def schema(self) -> pa.Schema:
        """The columns for all fields of the records; the first call reads the whole file.

        Raises:
            ScoresError: the values of a field have no common column type.
        """
        if self._schema is None:
            found = pa.schema([])
            for rows in self._rows():
                try:
                    some = _table_of([row for _, row, score in rows if score is not None])
                    found = pa.unify_schemas([found, some.schema], promote_options="permissive")
                except (pa.ArrowException, UnicodeError) as error:
                    raise self._no_columns(error) from error
            self._schema = found
        return self._schema

    def batches(self, *, with_columns: bool = False) -> Iterator[ScoreBatch]:
        for rows in self._rows():
            scored = [(number, row, score) for number, row, score in rows if score is not None]
            numbers = np.array([number for number, _, _ in scored], dtype=np.int64)
            yield ScoreBatch(
                numbers,
                pa.array([_id(number, row, self.id_column) for number, row, _ in scored], type=pa.string()),
                np.array([score for _, _, score in scored], dtype=np.float64),
                self._columns([row for _, row, _ in scored]) if with_columns else None,
                len(rows) - len(scored),
            )

    def reads(self, path: Path) -> bool:
        return same_place(path, self.path)

    def _rows(self) -> Iterator[list[tuple[int, dict[str, Any], float | None]]]:
        """Number, record and score of all records, in batches.

        Raises:
            ScoresError: no record has the field, or it does not contain scores.
        """
        kinds: dict[type, int] = {}
        any_id = self.id_column is None
        others: dict[str, None] = {}
        records = enumerate(read_json(self.path))
        while some := list(islice(records, RECORDS_AT_ONCE)):
            rows = []
            for number, value in some:
                if isinstance(value, RepeatedKeys):
                    raise ScoresError(f"record {number} of {self.path} has a duplicate key; keep one of its values")
                record = value if isinstance(value, dict) else {}
                self._names.update(record)
                any_id = any_id or record.get(str(self.id_column)) is not None
                found = record.get(self.column)
                if found is None:
                    others.update(dict.fromkeys(record))
                else:
                    self._check(found, number, kinds)
                rows.append((number, record, _finite(found)))
            yield rows
        if not kinds:
            fields = ", ".join(islice(others, 20)) or "none"
            raise ScoresError(
                f"no record of {self.path} has the field {self.column}{did_you_mean(self.column, list(others))}; the "
                f"fields are: {fields}; give the score field with --score-column"
            )
        if not any_id:
            raise ScoresError(f"no record of {self.path} has the id field {self.id_column}; give another --id-column")
        if self.column == SIMILARITY and float not in kinds:
            raise levels_not_scores(self.path)

    def _check(self, found: object, number: int, kinds: dict[type, int]) -> None:
        ratings = found if isinstance(found, list) else [found]
        if any(isinstance(one, bool) or not isinstance(one, int | float | None) for one in ratings):
            raise self._no_score(number, "a number or a list of numbers", found)
        if kinds and (list in kinds) != isinstance(found, list):
            what = "a list" if list in kinds else "a number"
            raise self._no_score(number, f"{what}, as in record {min(kinds.values())}", found)
        kinds.setdefault(type(found), number)
        if self.column == SIMILARITY and len(kinds) > 1:
            raise ScoresError(
                f"{self.path} mixes scores and levels in the field `{SIMILARITY}`: record {kinds[float]} has a decimal "
                f"number (a score) and record {kinds[int]} an integer (a level); put them in different files (a score "
                "of 1 is written as 1.0)"
            )

    def _no_score(self, number: int, expected: str, found: object) -> ScoresError:
        return ScoresError(f"record {number} of {self.path}: `{self.column}` must be {expected}, found {found!r:.80}")

    def _columns(self, rows: list[dict[str, Any]]) -> pa.RecordBatch:
        try:
            return pa.RecordBatch.from_pylist(rows, schema=self.schema)
        except (pa.ArrowException, UnicodeError) as error:
            raise self._no_columns(error) from error

    def _no_columns(self, error: Exception) -> ScoresError:
        return ScoresError(
            f"the records of {self.path} cannot be converted to a table ({error}); write .jsonl instead of .parquet"
        )


def _table_of(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    """The records as rows, with a column for each field that any of them has."""
    # Without a schema, Arrow makes columns only for the fields of the first record.
    fields = dict.fromkeys(name for row in rows for name in row)
    return pa.RecordBatch.from_pylist([fields | row for row in rows[:1]] + rows[1:])


def read_json(path: Path) -> Iterator[object]:
    """The records of a JSON array or of JSON lines, with one in memory at a time; a broken record is a `BrokenLine`.

    They are numbered as in `open_pairs`: blank lines do not count.

    Raises:
        SourceError: the file cannot be read, or the array is incomplete.
    """
    if starts_as(path) == "[":
        yield from (element.value for element in read_array(path))
        return
    for line in read_lines(path, text_start(path)):
        if line.content.strip():
            yield json_of(line)


def starts_as(path: Path) -> str:
    """The first non-whitespace character within the first 4 KiB of a file; empty if there is none.

    Raises:
        ScoresError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(4096).decode("utf-8-sig", errors="replace").lstrip()[:1]
    except OSError as error:
        raise ScoresError(f"{path} cannot be read: {error.strerror or error}") from error


def _finite(found: int | float | list[float | None] | None) -> float | None:
    """The score as a float; None if it is missing, NaN or outside the range of a float, such as 1e400."""
    try:
        score = lowest_rating(found if isinstance(found, list) else [found])
    except OverflowError:
        return None
    return score if math.isfinite(score) else None


def _id(number: int, row: dict[str, Any], column: str | None) -> str:
    name = column or default_id_column(list(row))
    own = None if name is None else row.get(name)
    text = str(number if own is None else own)
    return text.encode("utf-8", "backslashreplace").decode()
