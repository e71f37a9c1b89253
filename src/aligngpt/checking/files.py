"""Check data before running a job: which records would be rejected and why, and what is unusual but valid."""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aligngpt.checking.notes import Notes
from aligngpt.checking.repeats import Seen
from aligngpt.checking.result import MOST_LISTED, FileCheck, Lengths, Problem
from aligngpt.checking.tables import columns_ignored
from aligngpt.cpus import usable_cpus
from aligngpt.data.batches.examples import ExampleError, tokenize
from aligngpt.data.images.keys import image_key
from aligngpt.data.images.opening import ImageError, check_image, open_image, resolve_image
from aligngpt.data.records.columns import columns_not_read
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.ratings import RATINGS_SUFFIX, Lowest
from aligngpt.data.records.sample import Sample, own_id
from aligngpt.data.records.stored import Unread, archive_samples
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.levels_table import LevelsTable
from aligngpt.data.samples.reading import read_samples
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.finding import Archive, archive_at, root_of_data
from aligngpt.data.sources.parquet import ParquetSource
from aligngpt.data.sources.remote import located
from aligngpt.data.sources.stored_images import ArchivePictures
from aligngpt.files import atomic_write
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.progress import track

WORKERS = min(16, 4 + usable_cpus())
"""Number of threads that check images: reading waits for the disk, and Pillow releases the GIL while decoding."""

PART = 1_024
"""Number of samples that are checked together, and held in memory at a time."""

MOST_KNOWN = 1_000_000
"""Number of images whose result is kept; those beyond are looked at again when they are named again."""

Trouble = tuple[str, str]
"""Reason and detail of a problem."""


class Reading(NamedTuple):
    """The settings with which a model tokenizes samples; see `tokenize`."""

    processor: AlignGPTProcessor
    chat_template: str | None = None
    max_length: int = 2048


def check_files(
    paths: Sequence[Path],
    *,
    image_root: Path | None = None,
    levels: int | None = None,
    needs_level: bool = False,
    reading: Reading | None = None,
    lowest: Mapping[Path, Lowest] | None = None,
    tables: Mapping[Path, Path] | None = None,
    full: bool = False,
) -> list[FileCheck]:
    """Check files of records and list their problems, at most `MOST_LISTED` per reason; all are counted.

    Of each sample only its id and about 50 bytes are kept in memory, of an image its result up to `MOST_KNOWN`.

    Args:
        paths: files or folders of records, as for `load_samples`; or archives, as for `prepare_samples`.
        image_root: folder that image paths are relative to; each file's own folder when None.
        levels: number of levels N; if given, levels outside 1…N are rejected.
        needs_level: reject samples with an image but without a level, as in pre-training.
        reading: tokenization settings; tokens are not counted when None.
        lowest: the lowest ratings of answers, by path; those of the others are not read.
        tables: tables of the levels of archives, by the path of the archive; see `LevelsTable`.
        full: decode every image instead of checking its header only.

    Raises:
        SourceError: the image root is not a folder. An unreadable file is reported in the result instead.
    """
    paths, image_root = [located(path) for path in paths], None if image_root is None else located(image_root)
    if image_root is not None and not image_root.is_dir():
        raise SourceError(f"the image root {image_root} is not a folder")
    pictures = _Pictures(full)
    checks = []
    for path in paths:
        root = root_of_data(path, image_root)
        rated = (lowest or {}).get(path, Lowest())
        table = (tables or {}).get(path)
        checks.append(_Check(root, pictures, levels, needs_level, reading, rated, table).run(path))
    return checks


def checks_as_json(checks: Sequence[FileCheck]) -> str:
    """The full results as JSON; see `FileCheck.facts`."""
    # A lone surrogate, which UTF-8 cannot encode, becomes the escape it was read from.
    return json.dumps({"files": [check.facts() for check in checks]}, indent=1)


def write_checks(path: Path, checks: Sequence[FileCheck]) -> None:
    """Write the full results to a file, see `checks_as_json`; atomic."""
    with atomic_write(path) as file:
        file.write(checks_as_json(checks))


class _Found(Rejects):
    """Rejects that are counted, the first `MOST_LISTED` of each reason being kept in memory.

    Attributes:
        unread: number of records that are no samples, or samples that are rated too low.
        rejected: number of rejected records, these among them; each may have several problems.
        problems: the problems that are kept.
    """

    def __init__(self) -> None:
        super().__init__(None, max_share=1.0)
        self.unread, self.rejected = 0, 0
        self.problems: list[Problem] = []

    def add(self, record: int, id: str | None, reason: str, detail: str) -> None:
        """Note a record that is no sample."""
        self.unread += 1
        self.reject(record, id, [(reason, detail)])

    def reject(self, record: int, id: str | None, problems: Sequence[Trouble]) -> None:
        """Note the problems of a record."""
        self.rejected += 1
        for reason, detail in problems:
            super().add(record, id, reason, detail)
            if self.by_reason[reason] <= MOST_LISTED:
                self.problems.append(Problem(record, id, reason, detail))


class _Pictures:
    """Finds unusable images. Results are shared between files, since several files often use the same images."""

    def __init__(self, full: bool) -> None:
        self.full = full
        self._look: Callable[[Path], object] = open_image if full else check_image
        self._known: dict[int, Trouble | None] = {}

    def broken(self, names: Sequence[str], root: Path) -> dict[str, Trouble]:
        """Why each unusable image is so, by name."""
        if not names:
            return {}
        pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="pictures")
        try:
            looked = pool.map(lambda name: self._trouble(name, root), names)
            return {name: found for name, found in zip(names, looked, strict=True) if found is not None}
        finally:
            # Ctrl-C must not wait for images that have not been checked yet.
            pool.shutdown(cancel_futures=True)

    def _trouble(self, name: str, root: Path) -> Trouble | None:
        try:
            path = resolve_image(name, root)
        except ImageError as error:
            return error.reason, str(error)
        key = image_key([str(path)])
        if key in self._known:
            return self._known[key]
        trouble = self._look_at(path)
        if len(self._known) < MOST_KNOWN:
            self._known[key] = trouble
        return trouble

    def _look_at(self, path: Path) -> Trouble | None:
        try:
            self._look(path)
        except ImageError as error:
            return error.reason, str(error)
        return None


class _Read(NamedTuple):
    """A sample as read.

    Attributes:
        sample: the sample.
        named: whether it has an id of its own.
        picture: identifies the image that is stored with it, by the hash of its content or place, or by its name; None
            if there is none.
        trouble: why that image cannot be used.
    """

    sample: Sample
    named: bool
    picture: int | str | None = None
    trouble: Trouble | None = None


class _Distinct:
    """Counts distinct images by 64-bit hashes."""

    def __init__(self) -> None:
        self._keys: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._new = array("q")

    def add(self, picture: int | str) -> None:
        self._new.append(picture if isinstance(picture, int) else image_key([picture]))
        if len(self._new) > max(PART, len(self._keys)):
            self._merge()

    def count(self) -> int:
        self._merge()
        return len(self._keys)

    def _merge(self) -> None:
        self._keys = np.unique(np.concatenate([self._keys, np.frombuffer(self._new, dtype=np.int64)]))
        self._new = array("q")


class _Tokens:
    """Token counts of the untruncated samples."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._counts = array("q")
        self._cut: list[int] = []
        self._cut_count = 0

    def trouble(self, sample: Sample) -> Trouble | None:
        """Count a sample's tokens; why it cannot be trained on, if so."""
        processor, template, max_length = self._reading
        messages = sample.messages()
        try:
            ids, _ = tokenize(messages, processor, chat_template=template, max_length=1 << 30)
            self._counts.append(len(ids))
            if len(ids) > max_length:
                tokenize(messages, processor, chat_template=template, max_length=max_length)
                self._cut_count += 1
                self._cut += [sample.record] * (self._cut_count <= MOST_LISTED)
        except ExampleError as error:
            return error.reason, str(error)
        return None

    def lengths(self) -> Lengths | None:
        if not self._counts:
            return None
        counts = np.sort(np.frombuffer(self._counts, dtype=np.int64))
        p50, p95, p99 = (int(counts[ceil(share * len(counts)) - 1]) for share in (0.5, 0.95, 0.99))
        return Lengths(p50, p95, p99, int(counts[-1]), self._reading.max_length, tuple(self._cut), self._cut_count)


class _Check:
    """Checks one file, a part of its samples at a time."""

    def __init__(
        self,
        root: Path,
        pictures: _Pictures,
        levels: int | None,
        needs_level: bool,
        reading: Reading | None,
        lowest: Lowest,
        table: Path | None,
    ) -> None:
        self.table = table
        self.root, self.pictures, self.lowest = root, pictures, lowest
        self.num_levels, self.needs_level = levels, needs_level
        self.tokens = None if reading is None else _Tokens(reading)
        self.error: str | None = None
        self.found, self.notes, self.seen = _Found(), Notes(), Seen()
        self.images, self.broken = _Distinct(), _Distinct()
        self.levels: Counter[int] = Counter()
        self.samples, self.turns, self.text_only, self.without_level = 0, 0, 0, 0

    def run(self, path: Path) -> FileCheck:
        """Check all records of a file and return the results."""
        read = track(self._read(path), f"checking {path.name}", unit="samples")
        while part := list(islice(read, PART)):
            self._check(part)
        for name in self.lowest.ratings:
            self.notes.not_read.pop(name + RATINGS_SUFFIX, None)
        if self.error is None and not self.samples:
            self.error = f"{path} contains no usable record"
        return FileCheck(
            path=path,
            image_root=self.root,
            error=self.error,
            records=len(self.seen) + self.found.unread,
            samples=self.samples,
            turns=self.turns,
            text_only=self.text_only,
            images=self.images.count(),
            broken_images=self.broken.count(),
            rejected=self.found.rejected,
            problems=tuple(sorted(self.found.problems, key=lambda problem: problem.record)),
            problem_counts=dict(self.found.by_reason),
            repeated_ids=self.seen.repeated_ids(),
            identical=self.seen.identical(),
            levels=dict(sorted(self.levels.items())),
            without_level=self.without_level,
            expected_levels=self.num_levels,
            lengths=None if self.tokens is None else self.tokens.lengths(),
            not_read=dict(self.notes.not_read),
            notes=dict(self.notes.others),
        )

    def _read(self, path: Path) -> Iterator[_Read]:
        """The samples of a file; an error that ends reading is kept."""
        try:
            archive = archive_at(path)
            table = None if self.table is None else LevelsTable.load(self.table, path, archive)
            if archive is not None:
                yield from self._read_archive(archive, table)
                return
            count = 0
            for sample, record in read_samples(path, self.found):
                if not self._is_rated_low(sample, record):
                    count += 1
                    self.notes.add(record)
                    yield _Read(sample, own_id(record) is not None)
            self.notes.not_read.update(dict.fromkeys(columns_ignored(path), count))
        except SourceError as caught:
            self.error = str(caught)

    def _read_archive(self, archive: Archive, table: LevelsTable | None) -> Iterator[_Read]:
        """The samples of an archive, whose stored images are checked along the way.

        Raises:
            SourceError: see `archive_samples`.
        """
        places = ArchivePictures.of(archive)
        if isinstance(archive, ParquetSource):
            self.notes.not_read.update(columns_not_read(archive.files))
        for one in archive_samples(archive, check_images=True):
            if isinstance(one, Unread):
                self.found.add(*one)
                continue
            sample = one.sample if table is None else table.applied_to(one.sample)
            if self._is_rated_low(sample, one.fields):
                continue
            self.notes.add(one.fields)
            named = sample.id != str(sample.record)
            if one.stored is None:
                yield _Read(sample, named)
                continue
            trouble = one.trouble
            try:
                if self.pictures.full and trouble is None:
                    places.picture(sample.images[0], one.stored).open()
                elif one.picture is not None:
                    one.picture.check()
            except ImageError as error:
                trouble = error.reason, str(error)
            yield _Read(sample, named, sample.images[0] if one.key is None else one.key, trouble)

    def _is_rated_low(self, sample: Sample, record: Mapping[str, Any]) -> bool:
        """Whether a record is rejected because of its ratings."""
        try:
            self.lowest.applied_to(sample, record)
        except RecordError as error:
            self.found.add(sample.record, sample.id, error.reason, str(error))
            return True
        return False

    def _check(self, part: Sequence[_Read]) -> None:
        names = dict.fromkeys(name for one in part if one.picture is None for name in one.sample.images)
        broken = self.pictures.broken(list(names), self.root)
        for name in names:
            self.images.add(name)
        for name in broken:
            self.broken.add(name)
        for one in part:
            sample = one.sample
            self.seen.add(sample, named=one.named, picture=sample.images if one.picture is None else one.picture)
            if one.picture is not None:
                self.images.add(one.picture)
                if one.trouble is not None:
                    self.broken.add(one.picture)
            if sample.level is not None:
                self.levels[sample.level] += 1
            elif sample.images:
                self.without_level += 1
            if problems := list(self._problems(one, broken)):
                self.found.reject(sample.record, sample.id, problems)
            else:
                self.samples += 1
                self.turns += len(sample.turns)
                self.text_only += not sample.images

    def _problems(self, one: _Read, broken: Mapping[str, Trouble]) -> Iterator[Trouble]:
        """Why a sample would be rejected; `broken` has the unusable images below the image root, by name."""
        sample = one.sample
        if one.trouble is not None:
            yield one.trouble
        if (trouble := self._level_trouble(sample)) is not None:
            yield trouble
        if one.picture is None:
            details: dict[str, list[str]] = {}
            for name in dict.fromkeys(sample.images):
                if name in broken:
                    reason, detail = broken[name]
                    details.setdefault(reason, []).append(detail)
            yield from ((reason, "; ".join(told)) for reason, told in details.items())
        if self.tokens is not None and (trouble := self.tokens.trouble(sample)) is not None:
            yield trouble

    def _level_trouble(self, sample: Sample) -> Trouble | None:
        if sample.level is None and sample.images and self.needs_level:
            return "no_level", "no alignment level (field `similarity`); run `aligngpt levels` first"
        if sample.level is not None and self.num_levels is not None and sample.level > self.num_levels:
            return (
                "level_outside",
                f"`similarity` is {sample.level - 1}, expected 0…{self.num_levels - 1} (levels 1…{self.num_levels}); "
                "give the number of levels that the data was made with",
            )
        return None
