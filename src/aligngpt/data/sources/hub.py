"""Rows of data sets of the Hugging Face library: saved in a folder, or named on the hub."""

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
"""Rows in memory at a time; each may carry a picture of some megabytes."""


class DatasetSource(RecordSource):
    """The split `train` of a data set, or the only one it has, cut into ranges of rows.

    Args:
        source: a folder written by `save_to_disk`, or a name on the hub.
        shard_size: at most so many rows a shard.
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
        # What was loaded names files in this machine's cache; another one has its own.
        return {**self.__dict__, "_loaded": None}

    def shards(self) -> Sequence[Shard]:
        rows = self._rows().num_rows
        if not rows:
            raise SourceError(f"{self.source} holds no record")
        return [
            Shard(index, f"{Path(self.source).name}[{start}:{stop}]", stop - start, start=start, stop=stop, first=start)
            for index, start in enumerate(range(0, rows, self.shard_size))
            for stop in [min(start + self.shard_size, rows)]
        ]

    def read(self, shard: Shard) -> Iterator[Record | BrokenRecord]:
        rows = self._rows()
        columns = self.names.found_in(rows.column_names, str(self.source))
        # As Arrow has them, pictures are not decoded.
        part = rows.select_columns(columns.all()).select(range(shard.start, shard.stop)).with_format("arrow")
        number = 0
        for batch in part.iter(batch_size=BATCH_ROWS):
            for row in batch.to_pylist():
                place = f"row {shard.first + number} of {self.source}"
                yield Record(number, row, place, columns, self._fetched(row, columns.image))
                number += 1

    def fingerprint(self) -> str:
        """That of the files of a folder; of a data set on the hub the library's own, which covers its revision."""
        rows = self._rows()
        if isinstance(self.source, str):
            return str(rows._fingerprint)
        # The library notes its own in the folder, and would find it there whatever the files hold by now.
        return files_fingerprint([Path(file["filename"]) for file in rows.cache_files], self.source)

    def columns(self) -> set[ReadColumns]:
        return {self.names.found_in(self._rows().column_names, str(self.source))}

    def _fetched(self, row: dict[str, Any], column: str) -> Path | None:
        """The library's folder, where it fetched the row's picture, which is then named from there; else None."""
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
    # The library raises errors of many kinds, its own, of Arrow, of the network, with no family name.
    except Exception as error:
        what = "is no data set on disk" if isinstance(source, Path) else "is neither a path nor a data set on the hub"
        raise SourceError(f"{source} {what} that can be read: {error}") from error
    if isinstance(found, datasets.Dataset):
        return found
    if SPLIT in found:
        return found[SPLIT]
    if len(found) == 1:
        return next(iter(found.values()))
    raise SourceError(f"{source}: expected a split `{SPLIT}`, found {', '.join(found)}; name the folder of one split")
