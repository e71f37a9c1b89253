"""Score tables: their interface, and score columns of Parquet and CSV files."""

import csv
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from aligngpt.data.sources.byte_ranges import BrokenLine, text_start
from aligngpt.data.sources.csv import DELIMITERS
from aligngpt.data.sources.csv_rows import names_picture, read_rows
from aligngpt.data.sources.fields import ID_COLUMNS
from aligngpt.levels.columns import did_you_mean, is_number, is_ratings, scores_of
from aligngpt.scoring.places import is_inside, same_place
from aligngpt.scoring.score_files import ScoresError

SIMILARITY = "similarity"
"""A field that contains scores in some files and levels in others."""

DEFAULT_COLUMN = "score"

ROWS_AT_ONCE = 10_000
"""Rows of a CSV file in a batch."""

NO_SCORE = sorted(
    {*pyarrow.csv.ConvertOptions().null_values}
    | {spelling for word in ("none", "null", "na", "n/a", "nan", "<na>") for spelling in (word, word.upper())}
    | {"None", "Null", "NaN", "Nan", "-"}
)
"""CSV cells that mean "no score": Arrow's null values, and those that pandas, R and databases write."""


class ScoreBatch(NamedTuple):
    """A batch of rows that have a score.

    Attributes:
        numbers: row numbers in the source, ascending from 0, `(rows,)`.
        ids: ids of the rows as strings; their numbers if they have no id.
        scores: finite numbers, `(rows,)`.
        columns: all columns of the table, if requested.
        without: number of rows skipped because they have no score.
    """

    numbers: NDArray[np.int64]
    ids: pa.Array
    scores: NDArray[np.float64]
    columns: pa.RecordBatch | None
    without: int


class ScoreTable(ABC):
    """Rows with scores, read in batches; may be read several times."""

    @property
    def rows(self) -> int | None:
        """The number of rows, if known in advance."""
        return None

    @property
    def schema(self) -> pa.Schema:
        """The columns that `batches` can return with the rows; empty if there are only ids and scores."""
        return pa.schema([])

    @property
    def names(self) -> Collection[str]:
        """The names of the columns, or of the fields of the records that have been read, if the files are not ours."""
        return ()

    @property
    def copied(self) -> frozenset[str]:
        """Those of the names that the ids and scores are read from."""
        return frozenset()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read, if other programs may change them."""
        return ()

    @property
    def records(self) -> Path | None:
        """The JSON file whose records the levels can be written into, if the table is one."""
        return None

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences about the scores that users should read, once the rows have been read."""
        return ()

    @abstractmethod
    def batches(self, *, with_columns: bool = False) -> Iterator[ScoreBatch]:
        """The rows in order.

        Args:
            with_columns: also return all columns of `schema`.

        Raises:
            ScoresError: a file cannot be read, or the column does not contain scores.
        """

    def reads(self, path: Path) -> bool:
        """Whether the file at a path is, or would be, one of the files that are read."""
        return False


class ParquetScores(ScoreTable):
    """A score column of one or several Parquet files with the same columns.

    Args:
        path: the file, or the folder that contains the files.
        files: the files, in order.
        column: name of the score column; of lists of ratings, the lowest is the score (see `lowest_rating`).
        id_column: name of the id column; the default one, if there is one, if None.

    Raises:
        ScoresError: a file cannot be read, or has no such column of numbers.
    """

    def __init__(self, path: Path, files: Sequence[Path], column: str, id_column: str | None = None) -> None:
        self.path = path
        self.id_column = id_column
        self._files = tuple(files)
        self.column = column
        self._rows = 0
        self._schema = pa.schema([])
        for file in self.files:
            with _readable(file), pq.ParquetFile(file) as opened:
                schema = opened.schema_arrow
                self._rows += opened.metadata.num_rows
            check_column(column, schema.names, file)
            check_id_column(id_column, schema.names, file)
            if schema.names.count(column) > 1:
                raise ScoresError(f"{file} has {schema.names.count(column)} columns {column}; rename all but one")
            _check_type(schema.field(column), file)
            if file == self.files[0]:
                self._schema = schema.remove_metadata()

    @property
    def files(self) -> tuple[Path, ...]:
        return self._files

    @property
    def names(self) -> Collection[str]:
        return self._schema.names

    @property
    def copied(self) -> frozenset[str]:
        return copied_columns(self.column, self.id_column)

    @property
    def rows(self) -> int | None:
        return self._rows

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def batches(self, *, with_columns: bool = False) -> Iterator[ScoreBatch]:
        first = 0
        for path in self.files:
            with _readable(path), pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                wanted = {self.column, self.id_column or default_id_column(names)}
                if with_columns and (missing := [name for name in self.schema.names if name not in names]):
                    raise ScoresError(
                        f"{path} has no column {', '.join(missing)}, but the first file of {self.path} has"
                    )
                for batch in file.iter_batches(columns=None if with_columns else [n for n in names if n in wanted]):
                    schema = self.schema if with_columns else None
                    yield rows_of(batch, first, self.column, schema, self.id_column)
                    first += batch.num_rows

    def reads(self, path: Path) -> bool:
        if path.suffix == ".parquet" and is_inside(path, self.path):
            return True
        return any(same_place(path, file) for file in (self.path, *self.files))


class CsvScores(ScoreTable):
    """A score column of a CSV file with a header; all other columns are strings.

    A row that cannot be read, such as one with an unclosed quote, has no score.

    Args:
        path: the file: UTF-8, quoted by double quotes, separated by the first of `DELIMITERS` with which the header has
            the score column.
        column: name of the score column.
        id_column: name of the id column; the default one, if there is one, if None.

    Raises:
        ScoresError: the file cannot be read, or its header has no such column.
    """

    def __init__(self, path: Path, column: str, id_column: str | None = None) -> None:
        self.path = path
        self.id_column = id_column
        self.column = column
        self._broken, self._first_broken = 0, ""
        headers: dict[str, list[str]] = {}
        for delimiter in DELIMITERS:
            with _readable(path), path.open(encoding="utf-8-sig", newline="") as file:
                headers[delimiter] = next(csv.reader(file, delimiter=delimiter), [])
        fitting = (delimiter for delimiter, names in headers.items() if column in names)
        self.delimiter = next(fitting, None) or max(headers, key=lambda delimiter: len(headers[delimiter]))
        self._names = headers[self.delimiter]
        check_column(column, self._names, path)
        check_id_column(id_column, self._names, path)
        if len(set(self._names)) < len(self._names):
            raise ScoresError(f"{path} has several columns with the same name; make the names unique")

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
    def schema(self) -> pa.Schema:
        return pa.schema([(name, pa.float64() if name == self.column else pa.string()) for name in self._names])

    @property
    def remarks(self) -> tuple[str, ...]:
        if not self._broken:
            return ()
        return (f"rows of {self.path} that cannot be read and have no level: {self._broken}; {self._first_broken}",)

    def batches(self, *, with_columns: bool = False) -> Iterator[ScoreBatch]:
        wanted = {self.column, self.id_column or default_id_column(self._names)}
        places = [place for place, name in enumerate(self._names) if with_columns or name in wanted]
        first, any_score, any_fraction = 0, False, False
        rows = self._rows()
        while some := list(islice(rows, ROWS_AT_ONCE)):
            columns = {self._names[place]: pa.array([row[place] for row in some], pa.string()) for place in places}
            columns[self.column] = self._numbers(columns[self.column])
            batch = pa.RecordBatch.from_pydict(columns)
            scored = rows_of(batch, first, self.column, self.schema if with_columns else None, self.id_column)
            any_score = any_score or len(scored.scores) > 0
            any_fraction = any_fraction or bool((scored.scores % 1).any())
            yield scored
            first += len(some)
        if self.column == SIMILARITY and any_score and not any_fraction:
            raise levels_not_scores(self.path)

    def _rows(self) -> Iterator[Sequence[str]]:
        """The fields of the rows below the header; empty ones for a row that cannot be read.

        Raises:
            ScoresError: a row has too many fields, or too few.
        """
        self._broken, width = 0, len(self._names)
        with _readable(self.path):
            start = text_start(self.path)
        # For `names_picture`, a number is a name too.
        is_row = names_picture(self._names, self.column, self.delimiter)
        rows = read_rows(self.path, start, width=width, is_row=is_row, delimiter=self.delimiter)
        for number, row in enumerate(islice(rows, 1, None)):
            place = f"row {number}, at byte {row.start}"
            if isinstance(row.fields, BrokenLine):
                if not self._broken:
                    self._first_broken = f"the first is {place}: {row.fields.reason}"
                self._broken += 1
                yield [""] * width
            elif len(row.fields) != width:
                raise ScoresError(
                    f"{self.path} cannot be read: {place}: expected {width} fields, found {len(row.fields)}; quote "
                    f"texts that contain {DELIMITERS[self.delimiter]}s"
                )
            else:
                yield row.fields

    def _numbers(self, cells: pa.Array) -> pa.Array:
        cells = pc.if_else(pc.is_in(cells, value_set=pa.array(NO_SCORE)), None, cells)
        try:
            return pc.utf8_trim_whitespace(cells).cast(pa.float64())
        except pa.ArrowInvalid as error:
            raise ScoresError(f"{self.path} cannot be read: in the column {self.column}: {error}") from error

    def reads(self, path: Path) -> bool:
        return same_place(path, self.path)


def rows_of(
    batch: pa.RecordBatch, first: int, column: str, schema: pa.Schema | None, id_column: str | None = None
) -> ScoreBatch:
    """The rows of a batch that have a score.

    Args:
        batch: rows with the score column, and possibly an id column.
        first: row number of the first row of the batch.
        column: name of the score column; an empty, NaN or infinite cell is not a score.
        schema: names and types of the columns to return; None for no columns.
        id_column: name of the id column; the default one, if there is one, if None.
    """
    scores = scores_of(batch[column])
    numbers = first + np.arange(batch.num_rows)
    with_score = np.isfinite(scores)
    without = batch.num_rows - int(with_score.sum())
    if without:
        batch = batch.filter(pa.array(with_score))
        scores, numbers = scores[with_score], numbers[with_score]
    ids = pa.array(numbers).cast(pa.string())
    if name := id_column or default_id_column(batch.schema.names):
        ids = pc.coalesce(batch[name].cast(pa.string()), ids)
    columns = None if schema is None else batch.select(schema.names).cast(schema)
    return ScoreBatch(numbers, ids, scores, columns, without)


def default_id_column(names: Sequence[str]) -> str | None:
    """The name of the id column if none is given; None if there is none."""
    return next((name for name in ID_COLUMNS if name in names), None)


def copied_columns(column: str, id_column: str | None) -> frozenset[str]:
    """The columns that scores and ids are read from; see `ScoreTable.copied`."""
    return frozenset({column, id_column or ID_COLUMNS[0]})


def check_column(column: str, names: Sequence[str], where: Path) -> None:
    """Check that a column exists.

    Raises:
        ScoresError: it does not.
    """
    if column not in names:
        raise ScoresError(
            f"{where} has no column {column}{did_you_mean(column, names)}; the columns are: "
            f"{', '.join(names) or 'none'}; give the score column with --score-column"
        )


def check_id_column(column: str | None, names: Sequence[str], where: Path) -> None:
    """Check that an id column, if one is named, exists.

    Raises:
        ScoresError: it does not.
    """
    if column is not None and column not in names:
        raise ScoresError(
            f"{where} has no id column {column}; the columns are: {', '.join(names) or 'none'}; give another one with "
            "--id-column"
        )


def levels_not_scores(where: Path) -> ScoresError:
    """The error for a field `similarity` that contains levels, as written by `aligngpt levels` or the authors."""
    return ScoresError(
        f"the field `{SIMILARITY}` of {where} contains only integers, so these are levels, not scores; give the score "
        "field with --score-column"
    )


def _check_type(field: pa.Field, where: Path) -> None:
    if pa.types.is_integer(field.type) and field.name == SIMILARITY:
        raise levels_not_scores(where)
    if not (is_number(field.type) or is_ratings(field.type)):
        raise ScoresError(
            f"the column {field.name} of {where} has type {field.type}, expected numbers or lists of them"
        )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Convert read errors to a ScoresError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError, csv.Error) as error:
        raise ScoresError(f"{path} cannot be read: {error}") from error
