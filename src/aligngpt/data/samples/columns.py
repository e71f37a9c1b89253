"""Per-sample properties as NumPy columns, to be fast for hundreds of thousands of samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from aligngpt.data.images.keys import plain_name
from aligngpt.data.records.sample import Sample


@dataclass(frozen=True)
class Columns:
    """Properties of all samples, each `(samples,)`.

    Attributes:
        levels: alignment level 1…N, 0 if the sample has none.
        characters: number of characters of all turns together.
        images: number of images.
        interleaved: 1 if an image stands elsewhere than before the first question, else 0.
        keys: equal for two samples of one source if and only if their images are equal; meaningless without images.
        systems: equal for two samples of one source if and only if their system prompts are.
        sources: number of the source the sample comes from.
        blocks: number, within its source, of the block that must be read as a whole to get the sample's image; -1 if
            the image can be read alone.
        block_bytes: size in bytes of all images in that block; 0 if the image can be read alone.
    """

    levels: NDArray[np.int64]
    characters: NDArray[np.int64]
    images: NDArray[np.int64]
    interleaved: NDArray[np.int64]
    keys: NDArray[np.int64]
    systems: NDArray[np.int64]
    sources: NDArray[np.int64]
    blocks: NDArray[np.int64]
    block_bytes: NDArray[np.int64]

    def take(self, places: NDArray[np.int64]) -> "Columns":
        """The columns of the samples at the given indices."""
        return Columns(**{field.name: getattr(self, field.name)[places] for field in fields(self)})


@runtime_checkable
class HasColumns(Protocol):
    """Samples that provide their columns directly."""

    @property
    def columns(self) -> Columns:
        """The columns, without reading the samples one by one."""


def columns_of(samples: Sequence[Sample]) -> Columns:
    """The columns of any sequence of samples."""
    if isinstance(samples, HasColumns):
        return samples.columns
    known: dict[tuple[str, ...], int] = {}
    known_systems: dict[str | None, int] = {}

    def column(values: Iterator[int]) -> NDArray[np.int64]:
        return np.fromiter(values, dtype=np.int64, count=len(samples))

    return Columns(
        levels=column(sample.level or 0 for sample in samples),
        characters=column(sum(len(turn.text) for turn in sample.turns) for sample in samples),
        images=column(len(sample.images) for sample in samples),
        interleaved=column(int(sample.interleaved) for sample in samples),
        keys=column(known.setdefault(tuple(map(plain_name, sample.images)), len(known)) for sample in samples),
        systems=column(known_systems.setdefault(sample.system, len(known_systems)) for sample in samples),
        sources=np.zeros(len(samples), dtype=np.int64),
        blocks=np.full(len(samples), -1),
        block_bytes=np.zeros(len(samples), dtype=np.int64),
    )
