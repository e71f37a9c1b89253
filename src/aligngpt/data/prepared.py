"""Samples that were read and checked once and are kept on disk, from where any process maps them into memory."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aligngpt.cache import CacheError, cache_entry, cache_folder
from aligngpt.data.images import IMAGE_REASONS
from aligngpt.data.rejects import Rejects
from aligngpt.data.rows import Columns
from aligngpt.data.sample_table import SAMPLE_COLUMNS, SCHEMA, row_of, sample_of
from aligngpt.data.samples import Sample
from aligngpt.data.sources import SourceError, read_samples, root_of, trouble_with
from aligngpt.files import sha256_of
from aligngpt.progress import Meter

FORMAT = 1
"""Of an entry; another number makes all entries anew."""

BATCH = 4096
"""Samples in a batch of the Arrow file; all but the last have so many."""

PART = 1024
"""Samples whose pictures are looked at before more are read."""

WORKERS = min(16, 4 + (os.cpu_count() or 1))
"""Threads that look at pictures."""

SAMPLES_FILE, REJECTS_FILE = "samples.arrow", "rejects.jsonl"


class PreparedSamples(Sequence[Sample]):
    """The samples of an entry. A sample is made when it is asked for, so memory stays flat; pickled, it is a path.

    Args:
        folder: of the entry.
        image_root: folder the samples' image paths start from.

    Raises:
        OSError, pyarrow.ArrowInvalid: there is no whole entry.
    """

    def __init__(self, folder: Path, image_root: Path) -> None:
        self.folder, self.image_root = folder, image_root
        with pa.memory_map(str(folder / SAMPLES_FILE)) as file, pa.ipc.open_file(file) as reader:
            # Batches are views of the map and keep it.
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._count = sum(batch.num_rows for batch in self._batches)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(self._count))]
        batch, place = divmod(range(self._count)[index], BATCH)
        columns = self._batches[batch]
        return sample_of({SCHEMA.names[number]: columns.column(number)[place].as_py() for number in SAMPLE_COLUMNS})

    def __iter__(self) -> Iterator[Sample]:
        for batch in self._batches:
            yield from map(sample_of, batch.select(SAMPLE_COLUMNS).to_pylist())

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedSamples, (self.folder, self.image_root)

    @cached_property
    def columns(self) -> Columns:
        """What is asked of all samples at once."""
        return Columns(
            levels=self._column("level"),
            characters=self._column("characters"),
            images=self._column("image_count"),
            keys=self._column("key"),
            sources=np.zeros(self._count, dtype=np.int64),
        )

    def _column(self, name: str) -> NDArray[np.int64]:
        parts = [batch.column(name).to_numpy() for batch in self._batches]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def prepare_samples(
    path: Path,
    *,
    image_root: Path | None = None,
    require_level: bool = False,
    rejects: Rejects,
    check_images: bool = True,
    among_others: bool = False,
) -> PreparedSamples:
    """As `load_samples`, of which the work is done once and kept in `cache_folder("samples")`.

    What is kept is found again by the file's content, so a file that changed is read anew. Pictures that could not be
    used are looked at each time; where one of them now can be, all is read anew. One that goes missing later is found
    when it is opened.

    Args:
        path, image_root, require_level, rejects, check_images: see `load_samples`.
        among_others: this is one of several files. Rejects then name it, and their share is left to the caller.

    Raises:
        SourceError: the file cannot be read, changes while it is read, or holds nothing that can be used.
        TooManyRejects: too large a share of the records cannot be used.
        CacheError: the cache cannot be written.
    """
    root = root_of(path, image_root)
    demands = {"require_level": require_level, "check_images": check_images}
    key = json.dumps([FORMAT, content_of(path), str(root.resolve()), demands])
    folder = cache_folder("samples") / hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    found = _opened(folder, root, demands)
    if found is None:
        try:
            _build(folder, path, root, demands)
        except CacheError:
            # Another process may have made it meanwhile.
            if (found := _opened(folder, root, demands)) is None:
                raise
        else:
            found = _Entry.of(folder, root)
    for reject in found.rejects:
        detail = f"{path}: {reject.detail}" if among_others else reject.detail
        rejects.add(reject.record, reject.id, reject.reason, detail)
    if not among_others:
        rejects.check(len(found.samples) + rejects.count)
    if not found.samples:
        raise SourceError(f"{path} holds no record that can be used")
    return found.samples


def content_of(path: Path) -> str:
    """The SHA-256 of a file, worked out once in a process while the file stays as it is.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        state = path.stat()
        return _content(path.absolute(), state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error


@lru_cache(maxsize=64)
def _content(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return sha256_of(file)


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
    def of(cls, folder: Path, root: Path) -> "_Entry":
        with (folder / REJECTS_FILE).open(encoding="utf-8") as file:
            rejects = [_Reject(*json.loads(line)) for line in file]
        return cls(PreparedSamples(folder, root), rejects)


def _opened(folder: Path, root: Path, demands: dict[str, bool]) -> _Entry | None:
    """What was kept, where it is whole and still true."""
    with suppress(OSError, ValueError, TypeError):
        entry = _Entry.of(folder, root)
        for reject in entry.rejects:
            if reject.reason in IMAGE_REASONS and trouble_with(_shown(reject), root, **demands) is None:
                return None
        return entry
    return None


def _shown(reject: _Reject) -> Sample:
    """A sample that has a rejected one's images, and whatever level it may need."""
    return Sample("", (), tuple(reject.images), level=1)


class _Kept(Rejects):
    """Rejects that are written to an entry."""

    def __init__(self, path: Path) -> None:
        super().__init__(None, max_share=1.0)
        self._file = path.open("w", encoding="utf-8")
        self._new: list[_Reject] = []

    def add(self, record: int, id: str | None, reason: str, detail: str, images: Sequence[str] = ()) -> None:
        super().add(record, id, reason, detail)
        self._new.append(_Reject(record, id, reason, detail, tuple(images)))

    def flush(self) -> None:
        """Write the new ones in the order of their records: pictures are looked at after the records were read."""
        self._file.writelines(json.dumps(reject) + "\n" for reject in sorted(self._new, key=lambda one: one.record))
        self._new.clear()

    def __enter__(self) -> "_Kept":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _build(folder: Path, path: Path, root: Path, demands: dict[str, bool]) -> None:
    content = content_of(path)
    with (
        cache_entry(folder) as made,
        _Kept(made / REJECTS_FILE) as rejects,
        pa.OSFile(str(made / SAMPLES_FILE), "wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
        Meter(f"preparing {path.name}", None, unit="samples") as meter,
        ThreadPoolExecutor(WORKERS, thread_name_prefix="pictures") as pool,
    ):
        rows: list[dict[str, Any]] = []
        for part in _parts(sample for sample, _ in read_samples(path, rejects)):
            for sample, trouble in zip(part, _troubles(pool, part, root, demands), strict=True):
                if trouble is not None:
                    rejects.add(sample.record, sample.id, *trouble, sample.images)
                    continue
                try:
                    rows.append(row_of(sample))
                except OverflowError:
                    rejects.add(sample.record, sample.id, "level", "`similarity` or `score` is no number of this size")
            rejects.flush()
            while len(rows) >= BATCH:
                writer.write_batch(pa.RecordBatch.from_pylist(rows[:BATCH], schema=SCHEMA))
                del rows[:BATCH]
            meter.advance(len(part))
        rejects.flush()
        if rows:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
        if content_of(path) != content:
            raise SourceError(f"{path} changed while it was read; run the command again when it is written")


def _parts(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    while part := list(islice(samples, PART)):
        yield part


def _troubles(
    pool: ThreadPoolExecutor, samples: Sequence[Sample], root: Path, demands: dict[str, bool]
) -> Iterable[tuple[str, str] | None]:
    """What is wrong with each sample; pictures are looked at by several threads, since most of it is waiting."""

    def look(sample: Sample) -> tuple[str, str] | None:
        return trouble_with(sample, root, **demands)

    with_images = pool.map(look, [sample for sample in samples if sample.images])
    return [next(with_images) if sample.images else None for sample in samples]
