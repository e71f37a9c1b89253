"""The columns of tables of images and captions that are not read."""

from pathlib import Path

from aligngpt.data.sources.csv import CsvSource
from aligngpt.data.sources.fields import NUMBERS, ColumnNames
from aligngpt.data.sources.finding import TABLE_SUFFIXES, TABLES, find_records


def columns_ignored(path: Path) -> list[str]:
    """The columns that are not read of a table: a CSV or TSV file, or a folder of images with one; else empty.

    Raises:
        SourceError: the table cannot be read.
    """
    is_table = path.suffix.lower() in TABLE_SUFFIXES
    if not is_table and not (path.is_dir() and any((path / name).is_file() for name in TABLES)):
        return []
    records = find_records(path, shard_size=1, names=ColumnNames())
    if not isinstance(records, CsvSource) or not records.columns():
        return []
    read = {*NUMBERS, *(name for one in records.columns() for name in one.all())}
    return [name for name in records.header if name not in read]
