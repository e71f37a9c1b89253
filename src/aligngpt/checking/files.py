"""Check data before running a job: which records would be rejected and why, and what is unusual but valid."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from aligngpt.checking.notes import Notes
from aligngpt.checking.result import FileCheck, Lengths, Problem, Repeat
from aligngpt.checking.tables import columns_ignored
from aligngpt.cpus import usable_cpus
from aligngpt.data.batches.examples import ExampleError, tokenize
from aligngpt.data.images.opening import ImageError, check_image, open_image, resolve_image
from aligngpt.data.records.columns import columns_not_read
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.ratings import RATINGS_SUFFIX, Lowest
from aligngpt.data.records.sample import Sample, own_id
from aligngpt.data.records.stored import Unread, archive_samples
from aligngpt.data.rejects import Rejects
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
    full: bool = False,
) -> list[FileCheck]:
    """Check files of records and list all their problems; holds the samples of one file at a time in memory.

    Args:
        paths: files or folders of records, as for `load_samples`; or archives, as for `prepare_samples`.
        image_root: folder that image paths are relative to; each file's own folder when None.
        levels: number of levels N; if given, levels outside 1…N are rejected.
        needs_level: reject samples with an image but without a level, as in pre-training.
        reading: tokenization settings; tokens are not counted when None.
        lowest: the lowest ratings of answers, by path; those of the others are not read.
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
        checks.append(_check_file(path, root, pictures, levels, needs_level, reading, rated))
    return checks


def checks_as_json(checks: Sequence[FileCheck]) -> str:
    """The full results as JSON, with every problem of every record."""
    # A lone surrogate, which UTF-8 cannot encode, becomes the escape it was read from.
    return json.dumps({"files": [check.facts() for check in checks]}, indent=1)


def write_checks(path: Path, checks: Sequence[FileCheck]) -> None:
    """Write the full results to a file, see `checks_as_json`; atomic."""
    with atomic_write(path) as file:
        file.write(checks_as_json(checks))


class _Found(Rejects):
    """Rejects that are kept in memory."""

    def __init__(self) -> None:
        super().__init__(None, max_share=1.0)
        self.problems: list[Problem] = []

    def add(self, record: int, id: str | None, reason: str, detail: str) -> None:
        super().add(record, id, reason, detail)
        self.problems.append(Problem(record, id, reason, detail))


class _Pictures:
    """Finds unusable images. Results are shared between files, since several files often use the same images."""

    def __init__(self, full: bool) -> None:
        self.full = full
        self._look: Callable[[Path], object] = open_image if full else check_image
        self._known: dict[Path, tuple[str, str] | None] = {}

    def broken(self, names: Sequence[str], root: Path) -> dict[str, tuple[str, str]]:
        """Reason and detail of each unusable image, by name."""
        if not names:
            return {}
        pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="pictures")
        try:
            looked = track(
                pool.map(lambda name: self._trouble(name, root), names),
                "checking images",
                len(names),
                unit="images",
            )
            return {name: found for name, found in zip(names, looked, strict=True) if found is not None}
        finally:
            # Ctrl-C must not wait for images that have not been checked yet.
            pool.shutdown(cancel_futures=True)

    def _trouble(self, name: str, root: Path) -> tuple[str, str] | None:
        try:
            path = resolve_image(name, root)
        except ImageError as error:
            return error.reason, str(error)
        if path not in self._known:
            self._known[path] = self._look_at(path)
        return self._known[path]

    def _look_at(self, path: Path) -> tuple[str, str] | None:
        try:
            self._look(path)
        except ImageError as error:
            return error.reason, str(error)
        return None


def _check_file(
    path: Path,
    root: Path,
    pictures: _Pictures,
    levels: int | None,
    needs_level: bool,
    reading: Reading | None,
    lowest: Lowest,
) -> FileCheck:
    found, notes, error = _Found(), Notes(), None
    samples: list[Sample] = []
    named: set[int] = set()
    stored = _Stored({}, set(), set(), [])
    try:
        archive = archive_at(path)
        if archive is not None:
            _read_archive(archive, pictures.full, lowest, samples, named, stored, found, notes)
        else:
            for sample, record in track(read_samples(path, found), f"reading {path.name}", unit="samples"):
                if _is_rated_low(sample, record, lowest, found):
                    continue
                samples.append(sample)
                notes.add(record)
                if own_id(record) is not None:
                    named.add(sample.record)
            notes.not_read.update(dict.fromkeys(columns_ignored(path), len(samples)))
        for name in lowest.ratings:
            notes.not_read.pop(name + RATINGS_SUFFIX, None)
    except SourceError as caught:
        error = str(caught)
    records = len(samples) + found.count
    for problem in stored.problems:
        found.add(*problem)
    _check_levels(samples, levels, needs_level, found)
    files = (name for sample in samples if sample.record not in stored.records for name in sample.images)
    names = list(dict.fromkeys(files))
    broken = pictures.broken(names, root)
    _check_images([sample for sample in samples if sample.record not in stored.records], broken, found)
    lengths = _check_tokens(samples, reading, found) if reading is not None and samples else None
    bad = {problem.record for problem in found.problems}
    usable = [sample for sample in samples if sample.record not in bad]
    if error is None and not usable:
        error = f"{path} contains no usable record"
    pictured = [sample for sample in samples if sample.images]
    return FileCheck(
        path=path,
        image_root=root,
        error=error,
        records=records,
        samples=len(usable),
        turns=sum(len(sample.turns) for sample in usable),
        text_only=sum(not sample.images for sample in usable),
        images=len(names) + len(stored.pictures),
        broken_images=len(broken) + len(stored.broken),
        problems=tuple(sorted(found.problems, key=lambda problem: problem.record)),
        repeated_ids=_repeats((sample.id, sample) for sample in samples if sample.record in named),
        identical=_repeats(
            # In concatenated tar files, different images may have the same name.
            ((stored.records.get(sample.record, sample.images), sample.system, sample.turns), sample)
            for sample in samples
        ),
        levels=dict(sorted(Counter(sample.level for sample in samples if sample.level is not None).items())),
        without_level=sum(sample.level is None for sample in pictured),
        expected_levels=levels,
        lengths=lengths,
        not_read=dict(notes.not_read),
        notes=dict(notes.others),
    )


class _Stored(NamedTuple):
    """The images of an archive: by record, distinct images, unusable images, and problems.

    An image is identified by the hash of its content or place; by its name if there is none.
    """

    records: dict[int, object]
    pictures: set[object]
    broken: set[object]
    problems: list[Problem]


def _read_archive(
    archive: Archive,
    full: bool,
    lowest: Lowest,
    samples: list[Sample],
    named: set[int],
    stored: _Stored,
    found: _Found,
    notes: Notes,
) -> None:
    """Read the samples of an archive and check their images along the way.

    Raises:
        SourceError: see `archive_samples`.
    """
    places = ArchivePictures.of(archive)
    if isinstance(archive, ParquetSource):
        notes.not_read.update(columns_not_read(archive.files))
    for one in track(archive_samples(archive, check_images=True), f"reading {archive.folder.name}", unit="samples"):
        if isinstance(one, Unread):
            found.add(*one)
            continue
        sample = one.sample
        if _is_rated_low(sample, one.fields, lowest, found):
            continue
        samples.append(sample)
        notes.add(one.fields)
        if sample.id != str(sample.record):
            named.add(sample.record)
        if one.stored is None:
            continue
        picture = sample.images[0] if one.key is None else one.key
        stored.records[sample.record] = picture
        stored.pictures.add(picture)
        trouble = one.trouble
        try:
            if full and trouble is None:
                places.picture(sample.images[0], one.stored).open()
            elif one.picture is not None:
                one.picture.check()
        except ImageError as error:
            trouble = error.reason, str(error)
        if trouble is not None:
            stored.broken.add(picture)
            stored.problems.append(Problem(sample.record, sample.id, *trouble))


def _is_rated_low(sample: Sample, record: Mapping[str, Any], lowest: Lowest, found: _Found) -> bool:
    """Whether a record is rejected because of its ratings."""
    try:
        lowest.applied_to(sample, record)
    except RecordError as error:
        found.add(sample.record, sample.id, error.reason, str(error))
        return True
    return False


def _check_levels(samples: Sequence[Sample], levels: int | None, needs_level: bool, found: _Found) -> None:
    for sample in samples:
        if sample.level is None and sample.images and needs_level:
            detail = "no alignment level (field `similarity`); run `aligngpt levels` first"
            found.add(sample.record, sample.id, "no_level", detail)
        elif sample.level is not None and levels is not None and sample.level > levels:
            detail = (
                f"`similarity` is {sample.level - 1}, expected 0…{levels - 1} (levels 1…{levels}); give the number of "
                "levels that the data was made with"
            )
            found.add(sample.record, sample.id, "level_outside", detail)


def _check_images(samples: Sequence[Sample], broken: dict[str, tuple[str, str]], found: _Found) -> None:
    for sample in samples:
        details: dict[str, list[str]] = {}
        for name in dict.fromkeys(sample.images):
            if name in broken:
                reason, detail = broken[name]
                details.setdefault(reason, []).append(detail)
        for reason, told in details.items():
            found.add(sample.record, sample.id, reason, "; ".join(told))


def _check_tokens(samples: Sequence[Sample], reading: Reading, found: _Found) -> Lengths | None:
    """Token counts of the untruncated samples; those that cannot be trained on are rejected."""
    lengths, cut = [], []
    for sample in track(samples, "counting tokens", unit="samples"):
        try:
            messages = sample.messages()
            ids, _ = tokenize(messages, reading.processor, chat_template=reading.chat_template, max_length=1 << 30)
            lengths.append(len(ids))
            if len(ids) > reading.max_length:
                tokenize(
                    messages, reading.processor, chat_template=reading.chat_template, max_length=reading.max_length
                )
                cut.append(sample.record)
        except ExampleError as error:
            found.add(sample.record, sample.id, error.reason, str(error))
    if not lengths:
        return None
    lengths.sort()
    p50, p95, p99 = (lengths[ceil(share * len(lengths)) - 1] for share in (0.5, 0.95, 0.99))
    return Lengths(p50, p95, p99, lengths[-1], reading.max_length, tuple(cut))


def _repeats(keyed: Iterable[tuple[object, Sample]]) -> tuple[Repeat, ...]:
    """The samples whose key occurred before."""
    first: dict[object, int] = {}
    repeats = []
    for key, sample in keyed:
        earlier = first.setdefault(key, sample.record)
        if earlier != sample.record:
            repeats.append(Repeat(sample.record, earlier, sample.id))
    return tuple(repeats)
