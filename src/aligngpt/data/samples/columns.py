"""What is asked of all samples at once, as columns: hundreds of thousands of samples take a moment."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from aligngpt.data.records.sample import Sample


@dataclass(frozen=True)
class Columns:
    """What is asked of all samples at once; each `(samples,)`.

    Attributes:
        levels: alignment level 1…N, 0 without one.
        characters: of all turns together.
        images: how many.
        keys: equal for two samples of one source exactly where their images are; without images it says nothing.
        sources: which of several sources the sample is of.
        blocks: what has to be read as a whole to get the sample's image, by a number in its source; -1 where it can be
            read alone.
        block_bytes: how much that is; 0 where it can be read alone.
    """

    levels: NDArray[np.int64]
    characters: NDArray[np.int64]
    images: NDArray[np.int64]
    keys: NDArray[np.int64]
    sources: NDArray[np.int64]
    blocks: NDArray[np.int64]
    block_bytes: NDArray[np.int64]

    def take(self, places: NDArray[np.int64]) -> "Columns":
        """The columns of some of the samples."""
        return Columns(**{field.name: getattr(self, field.name)[places] for field in fields(self)})


@runtime_checkable
class HasColumns(Protocol):
    """Samples that are held as columns."""

    @property
    def columns(self) -> Columns:
        """The columns, without a look at the samples."""


def columns_of(samples: Sequence[Sample]) -> Columns:
    """The columns of any samples."""
    if isinstance(samples, HasColumns):
        return samples.columns
    known: dict[tuple[str, ...], int] = {}

    def column(values: Iterator[int]) -> NDArray[np.int64]:
        return np.fromiter(values, dtype=np.int64, count=len(samples))

    return Columns(
        levels=column(sample.level or 0 for sample in samples),
        characters=column(sum(len(turn.text) for turn in sample.turns) for sample in samples),
        images=column(len(sample.images) for sample in samples),
        keys=column(known.setdefault(sample.images, len(known)) for sample in samples),
        sources=np.zeros(len(samples), dtype=np.int64),
        blocks=np.full(len(samples), -1),
        block_bytes=np.zeros(len(samples), dtype=np.int64),
    )
