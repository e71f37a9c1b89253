"""Reading and writing files of records: a JSON array or JSON lines, told apart by what they hold."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aligngpt.data.images import ImageError, check_image, resolve_image
from aligngpt.data.pair_json_array import read_array
from aligngpt.data.pair_ranges import BOM, BrokenLine, json_of, read_lines, text_start
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples import RecordError, Sample, own_id, parse_record, to_record
from aligngpt.data.source_error import SourceError
from aligngpt.data.text_files import HEAD, check_kind, check_lines
from aligngpt.files import atomic_write

__all__ = [
    "BrokenLine",
    "SourceError",
    "load_samples",
    "read_records",
    "read_samples",
    "root_of",
    "trouble_with",
    "write_records",
    "write_samples",
]


def read_records(path: Path) -> Iterator[tuple[int, object]]:
    """The records of a file, numbered from 0, one in memory at a time.

    A line of JSON lines that is no JSON, and a record that is not UTF-8, come as a `BrokenLine`; an array that is
    broken ends with an error there.

    Raises:
        SourceError: the file cannot be read, is empty, is packed, is in another encoding than UTF-8, or is neither an
            array nor JSON lines.
    """
    try:
        if _is_array(path):
            yield from ((index, element.value) for index, element in enumerate(read_array(path)))
        else:
            yield from _read_lines(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error


def read_samples(path: Path, rejects: Rejects) -> Iterator[tuple[Sample, dict[str, Any]]]:
    """The samples of a file, each with the record it was made of; records that are none go to `rejects`.

    Raises:
        SourceError: see `read_records`.
    """
    for index, record in read_records(path):
        if isinstance(record, BrokenLine):
            rejects.add(index, None, record.kind, record.reason)
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
    require_level: bool = False,
    rejects: Rejects,
    check_images: bool = True,
) -> list[Sample]:
    """All the samples of a file whose images are there; the others go to `rejects`.

    Args:
        path: JSON array or JSON lines of LLaVA records.
        image_root: folder that image paths start from; the file's own when None.
        require_level: reject samples with an image but without an alignment level.
        rejects: where records that cannot be used go.
        check_images: look at each image's header now, rather than find out when it is opened.

    Raises:
        SourceError: the file cannot be read, or holds nothing that can be used.
        TooManyRejects: too large a share of the records cannot be used.
    """
    root = root_of(path, image_root)
    before = rejects.count
    samples = []
    for sample, _ in read_samples(path, rejects):
        if trouble := trouble_with(sample, root, require_level=require_level, check_images=check_images):
            rejects.add(sample.record, sample.id, *trouble)
        else:
            samples.append(sample)
    rejects.check(len(samples) + rejects.count - before)
    if not samples:
        raise SourceError(f"{path} holds no record that can be used")
    return samples


def root_of(path: Path, image_root: Path | None) -> Path:
    """The folder that the image paths of a file start from; the file's own when `image_root` is None.

    Raises:
        SourceError: it is not a folder.
    """
    root = path.parent if image_root is None else image_root
    # A folder that the file is not in either is an error about the file.
    if root != path.parent and not root.is_dir():
        raise SourceError(f"the image root {root} is not a folder")
    return root


def trouble_with(sample: Sample, root: Path, *, require_level: bool, check_images: bool) -> tuple[str, str] | None:
    """Why a sample cannot be used, a short name and the whole story; None when it can. See `load_samples`."""
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


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples as LLaVA records: a JSON array when the name ends in `.json`, else JSON lines; atomically."""
    write_records(path, [to_record(sample) for sample in samples])


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write records one a line, as a JSON array when the name ends in `.json`, else as JSON lines; atomically."""
    # What UTF-8 cannot hold (half a surrogate pair) stays the JSON escape that it was read from.
    lines = [json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace").decode() for record in records]
    with atomic_write(path) as file:
        if path.suffix == ".json":
            file.write("[\n" + ",\n".join(lines) + "\n]\n")
        else:
            file.writelines(line + "\n" for line in lines)


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(HEAD).removeprefix(BOM)
        check_kind(path, head)
        while head and not (start := head.lstrip()):
            head = file.read(HEAD)
    if not head:
        raise SourceError(f"{path} is empty")
    return start.startswith(b"[")


def _read_lines(path: Path) -> Iterator[tuple[int, object]]:
    check_lines(path)
    index = 0
    for line in read_lines(path, text_start(path)):
        if not line.content.strip():
            continue
        record = json_of(line)
        if isinstance(record, BrokenLine):
            if index == 0 and record.kind == "broken_line" and not line.content.lstrip().startswith(b"{"):
                raise SourceError(f"{path} is neither a JSON array nor JSON lines of records{_instead(path)}")
            record = BrokenLine(f"line {line.number}: {record.reason}", record.kind)
        yield index, record
        index += 1


def _instead(path: Path) -> str:
    """What reads a file that is none of records."""
    if path.suffix.lower() not in (".csv", ".tsv"):
        return ""
    return (
        "; CSV is read by `aligngpt score` and `aligngpt levels` only: check, train and evaluate read JSON arrays, "
        "JSON lines, Parquet and tar files"
    )
