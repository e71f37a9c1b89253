"""Archives that train as they are: whether their files are still the same, and their pictures by place."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from aligngpt.data.archive_records import StoredAt, picture_column
from aligngpt.data.images import resolve_image
from aligngpt.data.pair_files import files_fingerprint
from aligngpt.data.pair_parquet import ParquetPairs
from aligngpt.data.pair_sources import find_archive, is_pattern
from aligngpt.data.pair_tars import TarPairs
from aligngpt.data.pictures import Picture
from aligngpt.data.row_groups import RowGroups
from aligngpt.data.samples import Sample
from aligngpt.data.source_error import SourceError

Archive = ParquetPairs | TarPairs


def content_of_archive(archive: Archive) -> str:
    """A SHA-256 of the names, the sizes and a part of the content of an archive's files; see `files_fingerprint`.

    Raises:
        SourceError: a file cannot be read.
    """
    return files_fingerprint(archive.files, archive.folder)


def state_of_archive(archive: Archive) -> str:
    """As `content_of_archive`, and of the times of change: with another state the archive is read anew.

    Reading it anew once too often costs only time, and a change that the content does not tell may have another time.

    Raises:
        SourceError: a file cannot be read.
    """
    digest = hashlib.sha256(content_of_archive(archive).encode())
    for path in archive.files:
        try:
            digest.update(f"{path.stat().st_mtime_ns}\n".encode())
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def root_of_data(data: Path, image_root: Path | None) -> Path:
    """The folder that the image paths of a source start from: its own when `image_root` is None.

    A folder of archives is one itself.
    """
    if image_root is not None:
        return image_root
    return data if data.is_dir() else data.parent


def name_of_data(data: Path) -> str:
    """What people call a source: its name without extension, of a pattern that of its folder."""
    return data.absolute().parent.name if is_pattern(data) else data.stem


def archive_at(path: Path, image_root: Path | None = None) -> Archive | None:
    """The archive at `path`; None where there is something else, or nothing. See `find_archive`."""
    return find_archive(path, image_root=image_root)


class ArchiveFile(NamedTuple):
    """A file of an archive, and the column its pictures are in (of a tar file none)."""

    path: Path
    column: str | None


class ArchivePictures:
    """The pictures of an archive, by place.

    Args:
        files: of the archive, in order.
    """

    def __init__(self, files: Sequence[ArchiveFile]) -> None:
        self.files = files
        self.groups = RowGroups()

    @classmethod
    def of(cls, archive: Archive) -> "ArchivePictures":
        """Those of an archive."""
        return cls([ArchiveFile(path, picture_column(archive, number)) for number, path in enumerate(archive.files)])

    def save(self, path: Path) -> None:
        """Write down where they are, which `load` reads."""
        # Bytes that are no Unicode are in the names of files as JSON's escapes.
        path.write_text(json.dumps([[str(file.path), file.column] for file in self.files]), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "ArchivePictures | None":
        """Read what `save` wrote; None where nothing was written."""
        try:
            files = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return cls([ArchiveFile(Path(name), column) for name, column in files])

    def picture(self, name: str, stored: StoredAt) -> Picture:
        """The picture at a place, with its content where that had to be read.

        Raises:
            ImageError: the file cannot be read any more.
        """
        path, column = self.files[stored.file]
        if column is None:
            return Picture(f"{name} in {path}", path=path, offset=stored.start, length=stored.length)
        return Picture(name, content=self.groups.picture(path, column, stored.group, stored.start))


@runtime_checkable
class HasPictures(Protocol):
    """Samples whose pictures may be somewhere else than in files below an image root."""

    def picture(self, place: int, number: int) -> Picture | None:
        """A picture of the sample at a place; None where it is a file."""
        ...


def stored_picture(samples: Sequence[Sample], place: int, number: int) -> Picture | None:
    """A picture that is in an archive; None where it is a file below the image root.

    Raises:
        ImageError: the archive cannot be read any more.
    """
    return samples.picture(place, number) if isinstance(samples, HasPictures) else None


def picture_of(samples: Sequence[Sample], place: int, number: int, root: Path) -> Picture:
    """A picture of a sample, wherever it is.

    Args:
        samples: whose place counts.
        place: of the sample.
        number: of the picture among the sample's.
        root: folder that image paths start from.

    Raises:
        ImageError: its path leaves `root`, or its archive cannot be read any more.
    """
    if (stored := stored_picture(samples, place, number)) is not None:
        return stored
    name = samples[place].images[number]
    return Picture(name, path=resolve_image(name, root))
