"""The images in archives, by location; recently read row groups are cached in memory."""

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow

from aligngpt.data.images.opening import ImageError
from aligngpt.data.images.reference import Picture
from aligngpt.data.sources.base import SourceError, StoredAt
from aligngpt.data.sources.fields import PICTURE_COLUMNS, first_of
from aligngpt.data.sources.finding import Archive
from aligngpt.data.sources.parquet_rows import BATCH_ROWS, open_parquet, stored_bytes
from aligngpt.data.sources.remote import RemotePath, located
from aligngpt.data.sources.remote_store import RemoteError
from aligngpt.data.sources.tar import TarSource

KEPT_BYTES = 1 << 30
"""Limit for cached row groups, per process and source; the last one read is cached regardless of its size."""


class _Group(NamedTuple):
    batches: list[Any]
    stops: list[int]
    size: int


class RowGroups:
    """A cache of the image columns of row groups.

    Attributes:
        reads: number of row groups read so far.
    """

    def __init__(self) -> None:
        self.reads = 0
        self._kept: OrderedDict[tuple[Path, int], _Group] = OrderedDict()

    def picture(self, path: Path, column: str, group: int, row: int) -> bytes:
        """The encoded image in a row of a row group.

        Raises:
            ImageError: the file or the row group can no longer be read, or has no image there.
        """
        found = self._group(path, column, group)
        batch = bisect_right(found.stops, row)
        if batch < len(found.batches):
            cell = found.batches[batch].column(0)[row - (found.stops[batch - 1] if batch else 0)].as_py()
            if (content := stored_bytes(cell)) is not None:
                return content
        raise ImageError("missing", f"{path} has no image in row {row} of row group {group}; the file has changed")

    def _group(self, path: Path, column: str, group: int) -> _Group:
        key = (path, group)
        if key not in self._kept:
            read = _read(path, column, group)
            self.reads += 1
            kept = sum(one.size for one in self._kept.values())
            while self._kept and kept + read.size > KEPT_BYTES:
                kept -= self._kept.popitem(last=False)[1].size
            self._kept[key] = read
        self._kept.move_to_end(key)
        return self._kept[key]


def _read(path: Path, column: str, group: int) -> _Group:
    try:
        with open_parquet(path) as file:
            # In batches, because a column over 2 GB does not fit one array; a loader worker has no other threads.
            batches = list(
                file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=[column], use_threads=False)
            )
    except RemoteError:
        raise  # A lost connection is no fault of the image.
    except (SourceError, pyarrow.ArrowException, OSError) as error:
        raise ImageError("unreadable", f"{path}: row group {group} cannot be read: {error}") from error
    stops = list(accumulate(batch.num_rows for batch in batches))
    return _Group(batches, stops, sum(batch.nbytes for batch in batches))


class ArchiveFile(NamedTuple):
    """A file of an archive and its image column (None for a tar file)."""

    path: Path
    column: str | None


class ArchivePictures:
    """The images of an archive, by location.

    Args:
        files: the archive's files, in order.
    """

    def __init__(self, files: Sequence[ArchiveFile]) -> None:
        self.files = files
        self.groups = RowGroups()

    @classmethod
    def of(cls, archive: Archive) -> "ArchivePictures":
        """The images of an archive."""
        return cls([ArchiveFile(path, _picture_column(archive, path)) for path in archive.files])

    def save(self, path: Path) -> None:
        """Write the files and their image columns, for `load`."""
        # JSON escapes represent bytes in file names that are not Unicode.
        files = [[str(file.path), file.column, _state(file.path)] for file in self.files]
        path.write_text(json.dumps(files), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "ArchivePictures | None":
        """Read what `save` wrote; None if the file does not exist."""
        try:
            files = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return cls([ArchiveFile(_path(name, state), column) for name, column, state in files])

    def picture(self, name: str, stored: StoredAt) -> Picture:
        """The image at a location; from Parquet, including its content.

        Raises:
            ImageError: the file can no longer be read.
        """
        path, column = self.files[stored.file]
        if column is None:
            return Picture(f"{name} in {path}", path=path, offset=stored.start, length=stored.length)
        return Picture(name, content=self.groups.picture(path, column, stored.group, stored.start))


def _state(path: Path) -> list[Any] | None:
    """The version of the object at an address; None for a file."""
    return path.saved_state() if isinstance(path, RemotePath) else None


def _path(name: str, state: list[Any] | None) -> Path:
    path = Path(name) if state is None else located(name)
    return path.with_saved_state(state) if isinstance(path, RemotePath) else path


def _picture_column(archive: Archive, path: Path) -> str | None:
    if isinstance(archive, TarSource):
        return None
    with open_parquet(path) as file:
        return first_of(PICTURE_COLUMNS, file.schema_arrow.names)
