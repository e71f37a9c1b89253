"""Score tables: their interface, and score columns of Parquet and CSV files."""

import csv
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from aligngpt.data.sources.csv import DELIMITERS
from aligngpt.data.sources.fields import ID_COLUMNS
from aligngpt.levels.columns import did_you_mean, is_number, is_ratings, scores_of
from aligngpt.scoring.places import is_inside, same_place
from aligngpt.scoring.score_files import ScoresError

SIMILARITY = "similarity"
"""A field that contains scores in some files and levels in others."""

DEFAULT_COLUMN = "score"

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
        headers: dict[str, list[str]] = {}
        for delimiter in DELIMITERS:
            with _readable(path), path.open(encoding="utf-8-sig", newline="") as file:
                headers[delimiter] = next(csv.reader(file, delimiter=delimiter), [])
        fitting = (delimiter for delimiter, names in headers.items() if column in names)
        self.delimiter = next(fitting, None) or max(headers, key=lambda delimiter: len(headers[delimiter]))
        self.names = headers[self.delimiter]
        check_column(column, self.names, path)
        check_id_column(id_column, self.names, path)
        if len(set(self.names)) < len(self.names):
            raise ScoresError(f"{path} has several columns with the same name; make the names unique")

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(name, pa.float64() if name == self.column else pa.string()) for name in self.names])

    def batches(self, *, with_columns: bool = False) -> Iterator[ScoreBatch]:
        wanted = {self.column, self.id_column or default_id_column(self.names)}
        names = [name for name in self.names if with_columns or name in wanted]
        convert = pyarrow.csv.ConvertOptions(
            column_types=self.schema, include_columns=names, null_values=NO_SCORE, strings_can_be_null=False
        )
        parse = pyarrow.csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True)
        first = 0
        with (
            _readable(self.path, self.names),
            pyarrow.csv.open_csv(self.path, parse_options=parse, convert_options=convert) as rows,
        ):
            for batch in rows:
                yield rows_of(batch, first, self.column, self.schema if with_columns else None, self.id_column)
                first += batch.num_rows

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
def _readable(path: Path, names: Sequence[str] = ()) -> Iterator[None]:
    """Convert read errors to a ScoresError that names the file and, for CSV files, the column."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError, csv.Error) as error:
        said = re.sub(r"In CSV column #(\d+)", lambda found: f"in the column {names[int(found[1])]}", str(error))
        raise ScoresError(f"{path} cannot be read: {said}") from error
