"""What is kept of a run: predictions with probabilities, losses and gate weights, a few kilobytes per run.

A run's file is a Parquet file of one row with lists in it. All runs of a study are one such file of many rows, which
is all that the analysis reads.
"""

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aligngpt.files import atomic_write
from aligngpt.study.pairs import StudyError

FAILED = "failed"
"""The column of a run that has no results, which says why."""
SETTINGS_KEY = b"aligngpt.study"

Value = str | int | float | bool | None | np.ndarray | Sequence[Any]


def write_row(path: Path, row: Mapping[str, Value]) -> None:
    """Write the results of one run, atomically.

    Args:
        path: of the file.
        row: values by name; arrays are flattened, their shapes must be known to the reader.
    """
    columns = {name: pa.array([_plain(value)], type=_type(value)) for name, value in row.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        pq.write_table(pa.table(columns), file, compression="zstd")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The runs in a file, or in all files of a folder, in the order of their names; lists become arrays.

    Raises:
        StudyError: there are no results, or a file cannot be read.
    """
    files = sorted(path.glob("[!.]*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise StudyError(f"there are no results in {path}; run the study first")
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            table = pq.read_table(file)
        except (OSError, pa.ArrowException) as error:
            raise StudyError(f"{file} cannot be read ({error}); remove it and run the study again") from error
        for row in table.to_batches():
            for place in range(len(row)):
                rows.append({name: _value(row.column(name)[place]) for name in row.schema.names})
    return rows


def merge_files(files: Sequence[Path], out: Path, settings: Mapping[str, Any]) -> None:
    """Write the rows of all files into one, atomically; columns that a file lacks are null there.

    Args:
        files: of one row each.
        out: the file to write.
        settings: of the study, as JSON values; kept in the file, so that `take_over` can compare them.
    """
    tables = [pq.read_table(file) for file in files]
    # Earlier versions kept some columns in half precision.
    single = {field.name for table in tables for field in table.schema if field.type == pa.list_(pa.float32())}
    table = pa.concat_tables([_in_single_precision(table, single) for table in tables], promote_options="default")
    table = table.replace_schema_metadata({SETTINGS_KEY: json.dumps(settings)})
    with atomic_write(out, "wb") as file:
        pq.write_table(table, file, compression="zstd")


def settings_in(path: Path) -> dict[str, Any]:
    """The settings of the study whose results a file of `merge_files` holds.

    Raises:
        StudyError: it is not such a file.
    """
    try:
        settings: dict[str, Any] = json.loads(pq.read_schema(path).metadata[SETTINGS_KEY])
    except (OSError, pa.ArrowException, TypeError, KeyError, ValueError) as error:
        raise StudyError(
            f"{path} is not a results.parquet that `aligngpt study` wrote, which keeps the study's settings beside its "
            "rows"
        ) from error
    return settings


def _in_single_precision(table: pa.Table, columns: Set[str]) -> pa.Table:
    """The same table, with the lists of half precision in these columns as lists of single precision."""
    for place, field in enumerate(table.schema):
        if field.name in columns and field.type == pa.list_(pa.float16()):
            rows = [None if row is None else np.asarray(row, np.float32) for row in table[field.name].to_pylist()]
            table = table.set_column(place, field.name, pa.array(rows, pa.list_(pa.float32())))
    return table


def take_over(path: Path, folder: Path) -> int:
    """Write each row of a file of `merge_files` into a file of its own, as if the run had been done here.

    Runs that have a file already keep it.

    Args:
        path: the file of many rows.
        folder: of the files of one row.

    Returns:
        The number of rows written.
    """
    table, written = pq.read_table(path).replace_schema_metadata(None), 0
    for place, name in enumerate(table["run"].to_pylist()):
        out = folder / f"{name}.parquet"
        if out.is_file():
            continue
        row = table.slice(place, 1)
        row = row.select([column for column in row.column_names if not row[column].null_count or column == "answers"])
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out, "wb") as file:
            pq.write_table(row, file, compression="zstd")
        written += 1
    return written


def _plain(value: Value) -> Any:
    return value.ravel() if isinstance(value, np.ndarray) else value


def _type(value: Value) -> pa.DataType | None:
    return pa.list_(pa.from_numpy_dtype(value.dtype)) if isinstance(value, np.ndarray) else None


def _value(scalar: Any) -> Any:
    if isinstance(scalar, pa.ListScalar) and scalar.is_valid and not pa.types.is_string(scalar.type.value_type):
        return scalar.values.to_numpy(zero_copy_only=False)
    return scalar.as_py()
