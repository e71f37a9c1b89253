"""Read samples from JSON files into memory, and write them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aligngpt.data.images.opening import ImageError, check_image, resolve_image
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.sample import Sample, own_id, parse_record
from aligngpt.data.records.stored import Unread, archive_samples
from aligngpt.data.rejects import Rejects
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.byte_ranges import BrokenLine
from aligngpt.data.sources.finding import archive_at, root_of
from aligngpt.data.sources.remote import located
from aligngpt.data.sources.values import read_values
from aligngpt.files import atomic_write


def read_samples(path: Path, rejects: Rejects) -> Iterator[tuple[Sample, dict[str, Any]]]:
    """The samples of a file, each with the record it was made from; records that are not samples go to `rejects`.

    Raises:
        SourceError: see `read_values`.
    """
    for index, record in read_values(path):
        if isinstance(record, BrokenLine):
            rejects.add(index, record.id, record.kind, record.reason)
            continue
        try:
            sample = parse_record(record, index)
        except RecordError as error:
            rejects.add(index, own_id(record), error.reason, str(error))
            continue
        assert isinstance(record, dict)
        yield sample, record


def load_samples(
    path: Path,
    *,
    image_root: Path | None = None,
    rejects: Rejects,
    check_images: bool = True,
) -> list[Sample]:
    """Load all usable samples of a file; the others go to `rejects`.

    Args:
        path: see `read_values`.
        image_root: folder that image paths are relative to; the source's own folder when None.
        rejects: receives the unusable records.
        check_images: check that each image exists and has a valid header now, rather than when it is opened.

    Raises:
        SourceError: the file cannot be read, or contains no usable record.
        TooManyRejects: too large a share of the records is unusable.
    """
    root = root_of(path, image_root)
    before = rejects.count
    samples = []
    for sample, _ in read_samples(path, rejects):
        if trouble := trouble_with(sample, root, require_level=False, check_images=check_images):
            rejects.add(sample.record, sample.id, *trouble)
        else:
            samples.append(sample)
    rejects.check(len(samples) + rejects.count - before)
    if not samples:
        raise SourceError(f"{path} contains no usable record")
    return samples


def readable_samples(path: Path) -> Iterator[Sample]:
    """The samples of a source, of whatever format, without those that cannot be read; images are not opened.

    Raises:
        SourceError: see `read_values` and `archive_samples`.
    """
    archive = archive_at(path)
    if archive is None:
        yield from (sample for sample, _ in read_samples(located(path), Rejects(None, max_share=1.0)))
        return
    for one in archive_samples(archive, check_images=False):
        if not isinstance(one, Unread):
            yield one.sample


def mostly_questions(samples: Sequence[Sample]) -> bool:
    """Whether more than half of the samples look like questions rather than captions."""
    return 2 * sum(sample.is_question for sample in samples) > len(samples)


def trouble_with(sample: Sample, root: Path, *, require_level: bool, check_images: bool) -> tuple[str, str] | None:
    """Why a sample is unusable: the short reason and the full message; None if it is usable.

    Args:
        sample: the sample.
        root: folder that its image paths are relative to.
        require_level: a sample with an image but without an alignment level is unusable.
        check_images: see `load_samples`.
    """
    if require_level and sample.images and sample.level is None:
        return "no_level", "no alignment level (field `similarity`); run `aligngpt levels` first"
    try:
        for name in sample.images:
            image = resolve_image(name, root)
            if check_images:
                check_image(image)
    except ImageError as error:
        return error.reason, str(error)
    return None


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write one record per line, as a JSON array if the name ends in `.json`, else as JSON lines; atomic."""
    # What UTF-8 cannot encode (a lone surrogate) is written back as the JSON escape it was read from.
    lines = [json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace").decode() for record in records]
    with atomic_write(path) as file:
        if path.suffix == ".json":
            file.write("[\n" + ",\n".join(lines) + "\n]\n")
        else:
            file.writelines(line + "\n" for line in lines)
