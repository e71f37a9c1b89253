"""The records that an inspection looks at: drawn from a file, each with its kind of task."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligngpt.data.records.sample import Sample
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import read_samples
from aligngpt.data.sources.base import SourceError
from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.questions import Questions, read_questions
from aligngpt.evaluation.results import ALL_KINDS, REASONS, WITHOUT_KIND

KIND_FIELDS = ("question_type", "category", "source")
"""Fields that name the kind of task, the first that the records have."""

OTHERS = "(other kinds)"
MOST_KINDS = 24
NO_IMAGE = "no_image"


class InspectError(AlignGPTError):
    """A model or data cannot be inspected; the message says what to do."""


@dataclass(frozen=True)
class Chosen:
    """The records to look at.

    Attributes:
        source: the data, which opens the images.
        samples: the drawn records, in the order of the file.
        kinds: the kind of task of each.
        kind_field: the field that the kinds are from; None if the records have none, so that all are one group.
        usable: number of records with an image, from which the records are drawn.
        total: number of records in the data.
    """

    source: Questions
    samples: list[Sample]
    kinds: list[str]
    kind_field: str | None
    usable: int
    total: int


def choose_records(
    data: Path, *, image_root: Path | None, kind_field: str | None, limit: int, seed: int, rejects: Rejects
) -> Chosen:
    """Draw records with images; those that cannot be used go to `rejects`.

    Args:
        data: see `read_questions`.
        image_root: folder that image paths are relative to; the source's own when None.
        kind_field: field that names the kind of task; when None, the first of `KIND_FIELDS` that the records have.
        limit: largest number of records.
        seed: random seed of the draw.
        rejects: counts the records left out.

    Raises:
        InspectError: no record can be used, or the records do not have `kind_field`.
        SourceError: the data cannot be read.
    """
    try:
        source = read_questions(data, image_root=image_root, rejects=rejects)
    except SourceError as error:
        if not rejects.count:
            raise
        raise nothing_left(data, rejects) from error
    total = len(source.samples) + rejects.count
    usable = []
    for sample in source.samples:
        if sample.images:
            usable.append(sample)
        else:
            rejects.add(sample.record, sample.id, NO_IMAGE, "has no image, so the model forms no alignment embedding")
    if not usable:
        raise nothing_left(data, rejects)
    drawn = usable
    if limit < len(usable):
        drawn = sorted(random.Random(seed).sample(usable, limit), key=lambda sample: sample.record)
    field, kinds = _kinds(data, source, drawn, kind_field)
    return Chosen(source, drawn, kinds, field, len(usable), total)


def nothing_left(data: Path, rejects: Rejects) -> InspectError:
    """The error for data of which no record can be used."""
    return InspectError(
        f"no record of {data} can be used: {reasons_said(rejects.by_reason)}. Give data with images and answers, and "
        "the folder of the images with --image-root; `aligngpt check` lists every problem"
    )


def reasons_said(by_reason: Mapping[str, int]) -> str:
    """How many records were left out for which reason, in words."""
    names = REASONS | {NO_IMAGE: "without an image", "not_finite": "with a likelihood that is not a finite number"}
    ordered = sorted(by_reason.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{count:,} {names.get(reason, reason)}" for reason, count in ordered)


def _kinds(data: Path, source: Questions, drawn: Sequence[Sample], wanted: str | None) -> tuple[str | None, list[str]]:
    """The field that names the kinds, and the kind of each drawn record."""
    if wanted in (None, KIND_FIELDS[0]) and any(sample.kind is not None for sample in drawn):
        return KIND_FIELDS[0], _grouped([sample.kind for sample in drawn])
    if source.stored is not None:
        # The samples of an archive are prepared without their other columns.
        if wanted is not None:
            raise InspectError(
                f"of Parquet and tar files, kinds are read from the field {KIND_FIELDS[0]} only; "
                "omit --kind-field, or give the records as JSON"
            )
        return None, [ALL_KINDS] * len(drawn)
    at = {sample.record: place for place, sample in enumerate(drawn)}
    records: list[Mapping[str, Any]] = [{}] * len(drawn)
    for sample, record in read_samples(data, Rejects(None)):
        if (place := at.get(sample.record)) is not None:
            records[place] = {name: record.get(name) for name in (wanted, *KIND_FIELDS) if name is not None}
    for name in KIND_FIELDS if wanted is None else (wanted,):
        found = [record.get(name) for record in records]
        if any(value is not None for value in found) and all(_is_name(value) for value in found):
            return name, _grouped([None if value is None else str(value) for value in found])
    if wanted is not None:
        raise InspectError(
            f"the field {wanted} does not name a kind of task: none of the drawn records has it, or some have a list "
            "or an object there; name another field with --kind-field, or omit it"
        )
    return None, [ALL_KINDS] * len(drawn)


def _is_name(value: object) -> bool:
    return value is None or isinstance(value, str | int)


def _grouped(kinds: Sequence[str | None]) -> list[str]:
    """The kinds as names of groups; rare ones become one group if there are too many to show."""
    names = [WITHOUT_KIND if kind is None or not kind.strip() else kind for kind in kinds]
    counts = Counter(names)
    if len(counts) <= MOST_KINDS:
        return names
    kept = {name for name, _ in counts.most_common(MOST_KINDS - 1)}
    return [name if name in kept else OTHERS for name in names]
