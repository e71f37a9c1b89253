"""Rows of Hugging Face data sets: saved in a folder, or named on the hub."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub.constants import HF_HUB_CACHE

from aligngpt.data.sources.base import BrokenRecord, ReadColumns, Record, RecordSource, Shard, SourceError
from aligngpt.data.sources.fields import ColumnNames
from aligngpt.data.sources.fingerprints import files_fingerprint

SPLIT = "train"
BATCH_ROWS = 64
"""Rows in memory at a time; each may hold an image of several megabytes."""


class DatasetSource(RecordSource):
    """The split `train` of a data set, or its only split, divided into ranges of rows.

    Args:
        source: a folder written by `save_to_disk`, or a name on the hub.
        shard_size: maximum number of rows per shard.
        names: which features to read.
    """

    kind = "dataset"

    def __init__(self, source: Path | str, shard_size: int, names: ColumnNames) -> None:
        self.source = source
        self.base = source if isinstance(source, Path) else None
        self.shard_size = shard_size
        self.names = names
        self._loaded: datasets.Dataset | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The loaded data set refers to files in this machine's cache; another machine has its own.
        return {**self.__dict__, "_loaded": None}

    def shards(self) -> Sequence[Shard]:
        rows = self._rows().num_rows
        if not rows:
            raise SourceError(f"{self.source} has no records")
        return [
            Shard(index, f"{Path(self.source).name}[{start}:{stop}]", stop - start, start=start, stop=stop, first=start)
            for index, start in enumerate(range(0, rows, self.shard_size))
            for stop in [min(start + self.shard_size, rows)]
        ]

    def read(self, shard: Shard) -> Iterator[Record | BrokenRecord]:
        rows = self._rows()
        columns = self.names.found_in(rows.column_names, str(self.source))
        # In Arrow format, images are not decoded.
        part = rows.select_columns(columns.all()).select(range(shard.start, shard.stop)).with_format("arrow")
        number = 0
        for batch in part.iter(batch_size=BATCH_ROWS):
            for row in batch.to_pylist():
                place = f"row {shard.first + number} of {self.source}"
                yield Record(number, row, place, columns, self._fetched(row, columns.image))
                number += 1

    def fingerprint(self) -> str:
        """The fingerprint of a folder's files; for a data set on the hub, the library's own, covering its revision."""
        rows = self._rows()
        if isinstance(self.source, str):
            return str(rows._fingerprint)
        # The library stores its own fingerprint in the folder and would return that even if the files have changed.
        return files_fingerprint([Path(file["filename"]) for file in rows.cache_files], self.source)

    def columns(self) -> set[ReadColumns]:
        return {self.names.found_in(self._rows().column_names, str(self.source))}

    def _fetched(self, row: dict[str, Any], column: str) -> Path | None:
        """The library's cache folder if it holds the row's image, whose path is made relative to it; else None."""
        image = row[column]
        path = image.get("path") if isinstance(image, dict) and image.get("bytes") is None else None
        if isinstance(self.source, str) and isinstance(path, str):
            for cache in (Path(HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE)):
                if Path(path).is_relative_to(cache):
                    row[column] = {"bytes": None, "path": str(Path(path).relative_to(cache))}
                    return cache
        return None

    def _rows(self) -> datasets.Dataset:
        if self._loaded is None:
            rows = _load(self.source)
            self.names.found_in(rows.column_names, str(self.source))
            self._loaded = rows
        return self._loaded


def _load(source: Path | str) -> datasets.Dataset:
    try:
        if isinstance(source, str):
            return datasets.load_dataset(source, split=SPLIT)
        found = datasets.load_from_disk(source)
    # The library raises its own errors, Arrow's and network errors, which have no common base class.
    except Exception as error:
        what = (
            "is not a readable data set"
            if isinstance(source, Path)
            else "is neither a path nor a readable data set on the hub"
        )
        raise SourceError(f"{source} {what}: {error}") from error
    if isinstance(found, datasets.Dataset):
        return found
    if SPLIT in found:
        return found[SPLIT]
    if len(found) == 1:
        return next(iter(found.values()))
    raise SourceError(f"{source}: expected a split `{SPLIT}`, found {', '.join(found)}; use the folder of one split")
