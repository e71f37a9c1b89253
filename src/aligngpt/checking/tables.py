"""Tables of images and captions (CSV), read for checking the way `aligngpt score` reads them."""

from collections.abc import Iterator
from pathlib import Path

from aligngpt.data.records.pairs import Unusable, open_pairs
from aligngpt.data.records.sample import Sample, Turn
from aligngpt.data.rejects import Rejects
from aligngpt.data.sources.csv import CsvSource
from aligngpt.data.sources.finding import TABLES

SUFFIXES = (".csv", ".tsv")


def is_table(path: Path) -> bool:
    """Whether a path is a table of pairs: a file named like one, or a folder of images with its table."""
    return path.suffix.lower() in SUFFIXES or (path.is_dir() and any((path / name).is_file() for name in TABLES))


def columns_ignored(path: Path) -> list[str]:
    """The columns of a table that scoring does not read.

    Raises:
        SourceError: the table cannot be read.
    """
    records = open_pairs(path).records
    if not isinstance(records, CsvSource):
        return []
    read = {name for one in records.columns() for name in one.all()}
    return [name for name in records.header if name not in read]


def table_samples(path: Path, root: Path, rejects: Rejects) -> Iterator[Sample]:
    """The pairs of a table as samples with one image; rows that are not pairs go to `rejects`.

    Args:
        path: see `is_table`.
        root: folder that image paths are relative to.
        rejects: receives the unusable rows.

    Raises:
        SourceError: the table cannot be read.
    """
    pairs = open_pairs(path, image_root=root)
    for shard in pairs.shards():
        for one in pairs.read(shard):
            record = shard.first + one.record
            if isinstance(one, Unusable):
                rejects.add(record, one.id, one.reason, one.detail)
            else:
                turns = Turn("user", ""), Turn("assistant", one.caption)
                yield Sample(one.id, turns, (one.picture.name,), record=record)
