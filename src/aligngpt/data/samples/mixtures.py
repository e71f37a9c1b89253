"""Samples of several sources as one sequence, and subsets of a sequence; neither copies samples."""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aligngpt.data.images.keys import image_key
from aligngpt.data.images.reference import Picture
from aligngpt.data.records.sample import Sample
from aligngpt.data.samples.columns import Columns, columns_of
from aligngpt.data.samples.sequence import LazySamples, stored_picture
from aligngpt.data.sources.remote import RemotePath


class Mixture(LazySamples):
    """The samples of several sources, one source after the other; `columns.sources` numbers them from 0.

    Args:
        sources: the samples of each source.
        roots: the folder that the image paths of each source are relative to; empty if it is the same for all.
    """

    def __init__(self, sources: Sequence[Sequence[Sample]], roots: Sequence[Path] = ()) -> None:
        self.sources = sources
        self.roots = tuple(roots)
        self._stops = list(accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self._stops[-1]

    def __iter__(self) -> Iterator[Sample]:
        return chain.from_iterable(self.sources)

    def _at(self, place: int) -> Sample:
        source, within = self._within(place)
        return source[within]

    def picture(self, place: int, number: int) -> Picture | None:
        """An image stored in an archive; None if it is a file below the source's image root.

        Raises:
            ImageError: the archive can no longer be read.
        """
        return stored_picture(*self._within(place), number)

    def _within(self, place: int) -> tuple[Sequence[Sample], int]:
        """The source of a sample and its index within the source."""
        number = bisect_right(self._stops, place)
        return self.sources[number], place - (self._stops[number - 1] if number else 0)

    @cached_property
    def columns(self) -> Columns:
        """The columns of all samples."""
        parts = [columns_of(source) for source in self.sources]
        return Columns(
            levels=np.concatenate([part.levels for part in parts]),
            characters=np.concatenate([part.characters for part in parts]),
            images=np.concatenate([part.images for part in parts]),
            interleaved=np.concatenate([part.interleaved for part in parts]),
            keys=np.concatenate([part.keys for part in parts]),
            systems=np.concatenate([part.systems for part in parts]),
            sources=np.repeat(np.arange(len(parts)), [len(source) for source in self.sources]),
            blocks=np.concatenate([part.blocks for part in parts]),
            block_bytes=np.concatenate([part.block_bytes for part in parts]),
        )


class Chosen(LazySamples):
    """A subset of a sequence of samples.

    Args:
        samples: the sequence.
        places: indices of the chosen samples, `(chosen,)`.
    """

    def __init__(self, samples: Sequence[Sample], places: NDArray[np.int64]) -> None:
        self.samples, self.places = samples, places

    def __len__(self) -> int:
        return len(self.places)

    def _at(self, place: int) -> Sample:
        return self.samples[int(self.places[place])]

    def picture(self, place: int, number: int) -> Picture | None:
        """An image stored in an archive; None if it is a file below the image root.

        Raises:
            ImageError: the archive can no longer be read.
        """
        return stored_picture(self.samples, int(self.places[place]), number)

    @cached_property
    def columns(self) -> Columns:
        """The columns of the chosen samples."""
        return columns_of(self.samples).take(self.places)

    def others(self) -> "Chosen":
        """The samples of the sequence that are not chosen."""
        return Chosen(self.samples, np.setdiff1d(np.arange(len(self.samples)), self.places))


def held_out(samples: Sequence[Sample], share: float) -> NDArray[np.bool_]:
    """A boolean mask of the held-out samples, `(samples,)`; deterministic and independent of the samples' order.

    Samples connected by common images, directly or through other samples, are held out together or not at all. The
    choice depends on a hash of the image names, or of the id for a sample without an image. Files of sources with
    different image roots are the same if their paths are, from the folder that contains all roots; links are not
    followed below the roots. An image that is in two files, or in a file and in an archive, is not seen to be one.

    Args:
        samples: prepared samples.
        share: approximate share to hold out of all images and samples without an image, 0…1.
    """
    columns = columns_of(samples)
    keys = columns.keys.copy()
    places = _Places(samples.roots if isinstance(samples, Mixture) else ())
    if places.differ:
        for number, sample in enumerate(samples):
            # The key of an image in an archive is not that of its name.
            if len(sample.images) == 1 and keys[number] == image_key(sample.images):
                keys[number] = image_key([places.of(int(columns.sources[number]), sample.images[0])])
    leaders: dict[int, int] = {}

    def leader(key: int) -> int:
        while (above := leaders.setdefault(key, key)) != key:
            leaders[key] = leaders[above]
            key = above
        return key

    several = {
        int(place): [places.of(int(columns.sources[place]), name) for name in samples[int(place)].images]
        for place in np.flatnonzero(columns.images > 1)
    }
    for images in several.values():
        found = [leader(image_key([name])) for name in images]
        first = min(found)
        for one in found:
            leaders[one] = first
    for at, images in several.items():
        keys[at] = leader(image_key(images[:1]))
    if leaders:
        for place in np.flatnonzero((columns.images == 1) & np.isin(keys, np.fromiter(leaders, dtype=np.int64))):
            keys[place] = leader(int(keys[place]))
    # A leader is the smallest key of its group, so the keys are not uniformly distributed: mix them (splitmix64).
    mixed = keys.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) < np.uint64(share * 2.0**64)


class _Places:
    """Where the images of several sources are, as names that are equal if the files are the same.

    They begin at the folder that contains all roots, so that data may be moved together with it.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.differ = len(set(roots)) > 1
        self._remote = any(isinstance(root, RemotePath) for root in roots)
        self._roots = [str(root) if isinstance(root, RemotePath) else os.path.realpath(root) for root in roots]
        self._common = os.path.commonpath(self._roots) if roots and not self._remote else ""

    def of(self, source: int, name: str) -> str:
        """The place of the image that a record of a source names."""
        if not self.differ:
            return name
        if self._remote:
            return f"{self._roots[source]}/{name}"
        return os.path.relpath(os.path.join(self._roots[source], name), self._common)
