"""Samples cached on disk as record batches of an Arrow file, which processes map into memory."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aligngpt.data.images.reference import Picture
from aligngpt.data.records.sample import Sample
from aligngpt.data.samples.columns import Columns
from aligngpt.data.samples.sequence import LazySamples
from aligngpt.data.samples.table import SAMPLE_COLUMNS, SCHEMA, sample_of
from aligngpt.data.sources.base import StoredAt
from aligngpt.data.sources.stored_images import ArchivePictures

SAMPLES_FILE, ARCHIVE_FILE = "samples.arrow", "archive.json"


class PreparedSamples(LazySamples):
    """The samples of a cache entry, created on access to keep memory use constant; pickled as the entry's path.

    Args:
        folder: folder of the cache entry.

    Raises:
        OSError, pyarrow.ArrowInvalid: the entry is missing or incomplete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with pa.memory_map(str(folder / SAMPLES_FILE)) as file, pa.ipc.open_file(file) as reader:
            # Batches are views of the memory map and keep it alive.
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._count = sum(batch.num_rows for batch in self._batches)
        # All batches but the last have this size.
        self._size = self._batches[0].num_rows if self._batches else 1
        self._pictures = ArchivePictures.load(folder / ARCHIVE_FILE)

    def __len__(self) -> int:
        return self._count

    def _at(self, place: int) -> Sample:
        batch, row = divmod(place, self._size)
        columns = self._batches[batch]
        return sample_of({SCHEMA.names[number]: columns.column(number)[row].as_py() for number in SAMPLE_COLUMNS})

    def __iter__(self) -> Iterator[Sample]:
        for batch in self._batches:
            yield from map(sample_of, batch.select(SAMPLE_COLUMNS).to_pylist())

    def picture(self, place: int, number: int) -> Picture | None:
        """An image stored in an archive; None if it is a file below the image root.

        Args:
            place: index of the sample.
            number: number of the image; always 0, since samples in archives have one image.

        Raises:
            ImageError: the archive can no longer be read.
        """
        if self._pictures is None:
            return None
        batch, row = divmod(range(self._count)[place], self._size)
        columns = self._batches[batch]
        stored = StoredAt(*(columns.column(SCHEMA.get_field_index(name))[row].as_py() for name in StoredAt._fields))
        return None if stored.file < 0 else self._pictures.picture(self[place].images[number], stored)

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedSamples, (self.folder,)

    @cached_property
    def columns(self) -> Columns:
        """The columns of all samples."""
        blocks, block_bytes = self._blocks()
        return Columns(
            levels=self._column("level"),
            characters=self._column("characters"),
            images=self._column("image_count"),
            interleaved=self._column("interleaved"),
            keys=self._column("key"),
            systems=self._column("system_key"),
            sources=np.zeros(self._count, dtype=np.int64),
            blocks=blocks,
            block_bytes=block_bytes,
        )

    def _blocks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number of each image's row group (-1 outside Parquet files), and the size in bytes of all images in it."""
        file, group, length = (self._column(name) for name in ("file", "group", "length"))
        inside = group >= 0
        _, numbers = np.unique(np.stack([file, group])[:, inside], axis=1, return_inverse=True)
        numbers = numbers.reshape(-1)
        blocks, block_bytes = np.full(self._count, -1), np.zeros(self._count, dtype=np.int64)
        if inside.any():
            sums = np.zeros(numbers.max() + 1, dtype=np.int64)
            np.add.at(sums, numbers, length[inside])
            blocks[inside], block_bytes[inside] = numbers, sums[numbers]
        return blocks, block_bytes

    def _column(self, name: str) -> NDArray[np.int64]:
        parts = [batch.column(name).to_numpy() for batch in self._batches]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
