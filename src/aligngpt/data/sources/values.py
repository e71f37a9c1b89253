"""The records of any source that is not an archive, as the values that JSON records have."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aligngpt.data.sources.base import BrokenRecord, Record
from aligngpt.data.sources.byte_ranges import BrokenLine
from aligngpt.data.sources.coco import is_coco
from aligngpt.data.sources.compressed import can_decompress
from aligngpt.data.sources.fields import ColumnNames, is_given
from aligngpt.data.sources.finding import TABLE_SUFFIXES, find_records
from aligngpt.data.sources.json import read_records
from aligngpt.data.sources.remote import as_read, located

SHARD = 10_000

NUMBERS = ("level", "similarity", "score")
"""Fields that hold numbers; in CSV files, everything is text."""


def read_values(path: Path) -> Iterator[tuple[int, object]]:
    """Yield the records of a source, numbered from 0, with one in memory at a time.

    Rows of tables (CSV, TSV, COCO, folders of images) become records with `image`, `caption` and `id`, and with
    `level`, `similarity` and `score` as numbers.

    Args:
        path: a JSON array, JSON lines, CSV or TSV file, compressed or not; COCO captions; or a folder of images with
            their captions.

    Raises:
        SourceError: it cannot be read, or is none of these; see `read_records` and `find_records`.
    """
    path = as_read(path)
    if is_plain_json(path):
        yield from read_records(path)
        return
    source = find_records(path, shard_size=SHARD, names=ColumnNames())
    for shard in source.shards():
        for record in source.read(shard):
            index = shard.first + record.number
            if isinstance(record, BrokenRecord):
                yield index, BrokenLine(record.detail, record.kind)
            else:
                yield index, _as_record(record)


def is_plain_json(path: Path) -> bool:
    """Whether `read_records` reads a file, or says why it cannot be read."""
    path = located(path)
    if path.is_dir() or path.suffix.lower() in TABLE_SUFFIXES:
        return False
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        return True
    return not can_decompress(head) and not (b"{" in head and is_coco(path))


def _as_record(row: Record) -> object:
    value, columns = row.value, row.columns
    if not isinstance(value, Mapping):
        return value
    if columns is None:
        return _with_numbers({name: cell for name, cell in value.items() if cell != ""})
    # A record without an image would be text only, and a table of pairs has no such rows.
    for column, kind in ((columns.image, "no_picture"), (columns.caption, "empty_text")):
        if not is_given(value.get(column)):
            own = None if columns.id is None else value.get(columns.id)
            return BrokenLine(f"{row.place}: `{column}` is empty", kind, str(own) if is_given(own) else None)
    names = {"image": columns.image, "caption": columns.caption, "id": columns.id}
    record = {name: value[column] for name, column in names.items() if column is not None and is_given(value[column])}
    return _with_numbers(record | {name: value[name] for name in NUMBERS if is_given(value.get(name))})


def _with_numbers(record: dict[str, Any]) -> dict[str, Any]:
    for name in NUMBERS:
        if isinstance(cell := record.get(name), str):
            with suppress(ValueError):
                number = float(cell)
                record[name] = int(number) if name != "score" and number.is_integer() else number
    # `level` counts from 1, and `similarity`, which records have, from 0.
    level = record.get("level")
    if isinstance(level, int) and level >= 1 and "similarity" not in record:
        record["similarity"] = record.pop("level") - 1
    return record
