"""The rows of one Parquet file, or of one Arrow file of a saved data set, read a batch at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from aligngpt.data.sources.arrow import SUFFIX, ArrowFile
from aligngpt.data.sources.base import BrokenRecord, Record, Shard, SourceError
from aligngpt.data.sources.fields import listed
from aligngpt.data.sources.remote import RemotePath

BATCH_ROWS = 64
"""Rows in memory at a time; each may hold an image of several megabytes."""

READ_BUFFER = 1 << 20
"""Bytes read at a time from each column."""


def open_parquet(path: Path) -> Any:
    """Open a Parquet file, or an Arrow file of a saved data set, so that only one batch is in memory at a time.

    Raises:
        SourceError: it is not a readable file of its kind.
    """
    if path.suffix == SUFFIX:
        return ArrowFile(path)
    try:
        # Otherwise the columns of a whole row group, images included, are in memory at once.
        opened = path.open("rb") if isinstance(path, RemotePath) else path
        return pyarrow.parquet.ParquetFile(opened, buffer_size=READ_BUFFER, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise SourceError(f"{path} is not a readable Parquet file: {error}") from error


def read_records(file: Any, shard: Shard, columns: list[str], place: str) -> Iterator[Record | BrokenRecord]:
    """Yield the rows of a shard as records; if the file is damaged, each of the unreadable rest is a broken record.

    Every row counts, so that a record has the same number however the file is cut into shards.

    Args:
        file: see `open_parquet`.
        shard: a shard of the file.
        columns: the columns to read.
        place: display name of a row, with `{}` for its index.
    """
    number = 0
    try:
        for row in read_rows(file, shard, columns):
            where = place.format(shard.first + number)
            if isinstance(row, UnicodeDecodeError):
                yield BrokenRecord(number, "broken_text", f"{where} is not UTF-8")
            else:
                yield Record(number, row, where)
            number += 1
    except (pyarrow.ArrowException, OSError) as error:
        detail = f"{shard.path}: row group {shard.group} cannot be read from its row {shard.start + number} on: {error}"
        for lost in range(number, shard.stop - shard.start):
            yield BrokenRecord(lost, "broken_parquet", detail)


def read_rows(file: Any, shard: Shard, columns: list[str]) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """Yield the shard's rows; earlier rows of the row group are read and skipped."""
    at = 0
    # Threads would read ahead, beyond the current batch.
    batches = file.iter_batches(batch_size=BATCH_ROWS, row_groups=[shard.group], columns=columns, use_threads=False)
    for batch in batches:
        start, stop = max(shard.start - at, 0), min(shard.stop - at, batch.num_rows)
        if start < stop:
            yield from _values(batch.slice(start, stop - start))
        at += batch.num_rows
        if at >= shard.stop:
            return


def _values(batch: Any) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        # The whole batch is converted before anything is yielded, so it can be retried row by row to find the bad row.
        if batch.num_rows == 1:
            yield error
            return
        for row in range(batch.num_rows):
            yield from _values(batch.slice(row, 1))


def stored_bytes(found: object) -> bytes | None:
    """The encoded image in a cell of a Parquet file, which is bytes or `{"bytes", "path"}`, or a list of one of
    these; None if there is none."""
    if isinstance(found, list):
        found = next(iter(listed(found)), None)
    content = found.get("bytes") if isinstance(found, Mapping) else found
    return content if isinstance(content, bytes) else None
