"""Read and check samples once and cache them on disk, from where processes map them into memory."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from aligngpt.cache import CacheError, cache_entry, entry_path
from aligngpt.cpus import usable_cpus
from aligngpt.data.images.opening import IMAGE_REASONS, ImageError
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.ratings import Lowest
from aligngpt.data.records.sample import Sample
from aligngpt.data.records.stored import Found, Unread, archive_samples
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.index import ARCHIVE_FILE, SAMPLES_FILE, PreparedSamples
from aligngpt.data.samples.levels_table import LevelsTable
from aligngpt.data.samples.reading import read_samples, trouble_with
from aligngpt.data.samples.table import SCHEMA, row_of
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.finding import Archive, archive_at, content_of, root_of, root_of_data
from aligngpt.data.sources.remote import content_hash, located
from aligngpt.data.sources.stored_images import ArchivePictures
from aligngpt.progress import Meter

FORMAT = 5
"""Format version of a cache entry; changing it rebuilds all entries."""

RULES = Path(__file__).parents[1]
"""Folder of the modules that read records; an entry built by a different version of them is not used."""

BATCH = 4096
"""Number of samples in each batch of the Arrow file; the last batch may be smaller."""

PART = 1024
"""Number of samples whose images are checked before more samples are read."""

WORKERS = min(16, 4 + usable_cpus())
"""Number of threads that check images."""

REJECTS_FILE = "rejects.jsonl"


def prepare_samples(
    path: Path,
    *,
    image_root: Path | None = None,
    require_level: bool = False,
    rejects: Rejects,
    check_images: bool = True,
    among_others: bool = False,
    min_ratings: Mapping[str, float] | None = None,
    ratings_needed: bool = True,
    levels: Path | None = None,
) -> PreparedSamples:
    """Load samples like `load_samples`, archives included, but cache the result in `cache_folder("samples")`.

    The cache key of a file is its content, so a changed file is read again; that of an archive is the names, sizes,
    modification times and part of the content of its files (see `state_of_archive`). Images that were rejected are
    checked again on every call; if one of them has become usable, everything is read again. An image that goes missing
    later is noticed when it is opened.

    Args:
        path: JSON array or JSON lines of records; or Parquet or tar files, a folder of them or a pattern, or a saved
            data set (see `archive_at`). For archives, the locations of the images are cached, not their content.
        image_root, require_level, rejects, check_images: see `load_samples`.
        among_others: this is one of several files. Rejects then name the file, and the caller checks their share.
        min_ratings: the lowest rating of an answer that is learned from, by the rating's name; see
            `without_low_ratings`.
        ratings_needed: whether records without these ratings are rejected, or else kept as they are.
        levels: a table of the levels of an archive, in place of those in its records; see `LevelsTable`.

    Raises:
        SourceError: the file cannot be read, changes while it is read, or contains no usable record.
        TooManyRejects: too large a share of the records is unusable.
        CacheError: the cache cannot be written.
    """
    path, image_root = located(path), None if image_root is None else located(image_root)
    archive = archive_at(path)
    if archive is not None and image_root is not None and not image_root.is_dir():
        raise SourceError(f"the image root {image_root} is not a folder")
    root = root_of(path, image_root) if archive is None else root_of_data(path, image_root)
    demands = {"require_level": require_level, "check_images": check_images}
    state = _state_of(path, archive)
    # The archive's folder is part of the key, since its files will be opened again at this location.
    where = str(root.resolve()) if archive is None else [str(root.resolve()), str(archive.folder.resolve())]
    lowest = Lowest({} if min_ratings is None else dict(sorted(min_ratings.items())), ratings_needed)
    table = None if levels is None else LevelsTable.load(levels, path, archive)
    beside = [] if levels is None else [content_hash(levels)]
    key = json.dumps([FORMAT, code_digest(RULES), state, where, demands, lowest if lowest.ratings else {}, *beside])
    folder = entry_path("samples", hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest())
    found = _opened(folder, root, demands)
    if found is None:
        try:
            _build(folder, path, archive, root, demands, lowest, table)
        except CacheError:
            # Another process may have built it in the meantime.
            if (found := _opened(folder, root, demands)) is None:
                raise
        else:
            found = _Entry.of(folder)
    for reject in found.rejects:
        detail = f"{path}: {reject.detail}" if among_others else reject.detail
        rejects.add(reject.record, reject.id, reject.reason, detail)
    if not among_others:
        rejects.check(len(found.samples) + rejects.count)
    if not found.samples:
        raise SourceError(f"{path} contains no usable record")
    return found.samples


@lru_cache(maxsize=4)
def code_digest(folder: Path) -> str:
    """SHA-256 of all modules in a folder. Hashing all of them avoids keeping a list of those that affect how records
    are read; reading data again once after an upgrade costs little."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _state_of(path: Path, archive: Archive | None) -> str:
    return content_of(path) if archive is None else state_of_archive(archive)


def state_of_archive(archive: Archive) -> str:
    """Hash of an archive's fingerprint and of its files' modification times; the archive is read again when it changes.

    The modification times may reveal changes that the fingerprint misses; an unnecessary rebuild only costs time.

    Raises:
        SourceError: a file cannot be read.
    """
    digest = hashlib.sha256(archive.fingerprint().encode())
    for path in archive.files:
        try:
            digest.update(f"{path.stat().st_mtime_ns}\n".encode())
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


class _Reject(NamedTuple):
    record: int
    id: str | None
    reason: str
    detail: str
    images: tuple[str, ...] = ()


class _Entry(NamedTuple):
    samples: PreparedSamples
    rejects: list[_Reject]

    @classmethod
    def of(cls, folder: Path) -> "_Entry":
        with (folder / REJECTS_FILE).open(encoding="utf-8") as file:
            rejects = [_Reject(*json.loads(line)) for line in file]
        return cls(PreparedSamples(folder), rejects)


def _opened(folder: Path, root: Path, demands: dict[str, bool]) -> _Entry | None:
    """The cache entry if it is complete and still valid, else None."""
    with suppress(OSError, ValueError, TypeError):
        entry = _Entry.of(folder)
        for reject in entry.rejects:
            # Images in archives need no second check: a repaired archive has a different cache key.
            looked_for = reject.reason in IMAGE_REASONS and reject.images
            if looked_for and trouble_with(_shown(reject), root, **demands) is None:
                return None
        return entry
    return None


def _shown(reject: _Reject) -> Sample:
    """A stand-in sample with the images of a rejected one, and a level in case one is required."""
    return Sample("", (), tuple(reject.images), level=1)


class _Kept(Rejects):
    """Rejects that are written to a cache entry."""

    def __init__(self, path: Path) -> None:
        super().__init__(None, max_share=1.0)
        self._file = path.open("w", encoding="utf-8")
        self._new: list[_Reject] = []

    def add(self, record: int, id: str | None, reason: str, detail: str, images: Sequence[str] = ()) -> None:
        super().add(record, id, reason, detail)
        self._new.append(_Reject(record, id, reason, detail, tuple(images)))

    def flush(self) -> None:
        """Write the new rejects sorted by record: image errors are found after those of reading the records."""
        self._file.writelines(json.dumps(reject) + "\n" for reject in sorted(self._new, key=lambda one: one.record))
        self._new.clear()

    def __enter__(self) -> "_Kept":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _build(
    folder: Path,
    path: Path,
    archive: Archive | None,
    root: Path,
    demands: dict[str, bool],
    lowest: Lowest,
    table: LevelsTable | None,
) -> None:
    state = _state_of(path, archive)
    with (
        cache_entry(folder, is_made=lambda: _opened(folder, root, demands) is not None) as made,
        _Kept(made / REJECTS_FILE) as rejects,
        pa.OSFile(str(made / SAMPLES_FILE), "wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
        Meter(f"preparing {path.name}", None, unit="samples") as meter,
        ThreadPoolExecutor(WORKERS, thread_name_prefix="pictures") as pool,
    ):
        rows: list[dict[str, Any]] = []
        if archive is not None:
            ArchivePictures.of(archive).save(made / ARCHIVE_FILE)
        read = _found_in(path, archive, rejects, demands)
        if table is not None:
            read = (found._replace(sample=table.applied_to(found.sample)) for found in read)
        for part in _parts(_rated(read, rejects, lowest)):
            for found, trouble in zip(part, _troubles(pool, part, root, demands), strict=True):
                sample = found.sample
                if trouble is not None:
                    rejects.add(sample.record, sample.id, *trouble, () if found.stored else sample.images)
                    continue
                try:
                    rows.append(row_of(sample, found.stored, found.key))
                except OverflowError:
                    rejects.add(sample.record, sample.id, "level", "`similarity` or `score` is too large a number")
            rejects.flush()
            while len(rows) >= BATCH:
                writer.write_batch(pa.RecordBatch.from_pylist(rows[:BATCH], schema=SCHEMA))
                del rows[:BATCH]
            meter.advance(len(part))
        rejects.flush()
        if rows:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
        if _state_of(path, archive) != state:
            raise SourceError(f"{path} changed while it was being read; run the command again once it is fully written")


def _found_in(path: Path, archive: Archive | None, rejects: Rejects, demands: dict[str, bool]) -> Iterator[Found]:
    """The samples of a file or an archive; records that are not samples go to `rejects`."""
    if archive is None:
        yield from (Found(sample, fields=record) for sample, record in read_samples(path, rejects))
        return
    for one in archive_samples(archive, check_images=demands["check_images"]):
        if isinstance(one, Unread):
            rejects.add(*one)
        else:
            yield one


def _rated(samples: Iterator[Found], rejects: Rejects, lowest: Lowest) -> Iterator[Found]:
    """The samples, without the loss of answers that are rated too low; those with no answer left go to `rejects`."""
    for found in samples:
        try:
            yield found._replace(sample=lowest.applied_to(found.sample, found.fields))
        except RecordError as error:
            rejects.add(found.sample.record, found.sample.id, error.reason, str(error))


def _parts(samples: Iterator[Found]) -> Iterator[list[Found]]:
    while part := list(islice(samples, PART)):
        yield part


def _troubles(
    pool: ThreadPoolExecutor, found: Sequence[Found], root: Path, demands: dict[str, bool]
) -> Iterable[tuple[str, str] | None]:
    """The problem of each sample, or None; several threads check images, since most of the time is spent waiting."""

    def look(one: Found) -> tuple[str, str] | None:
        if one.stored is None:
            return trouble_with(one.sample, root, **demands)
        if demands["require_level"] and one.sample.level is None:
            return "no_level", "no alignment level (`level` or `similarity`); run `aligngpt levels` first"
        if one.picture is not None and demands["check_images"]:
            try:
                one.picture.check()
            except ImageError as error:
                return error.reason, str(error)
        return one.trouble

    with_images = pool.map(look, [one for one in found if one.sample.images])
    return [next(with_images) if one.sample.images else None for one in found]
