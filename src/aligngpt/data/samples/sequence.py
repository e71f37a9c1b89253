"""Sequences of samples that do not hold a sample, and samples whose pictures are stored in archives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, overload, runtime_checkable

from aligngpt.data.images.opening import resolve_image
from aligngpt.data.images.reference import Picture
from aligngpt.data.records.sample import Sample


class LazySamples(Sequence[Sample]):
    """A sequence whose samples are made when they are asked for, by `_at`."""

    def _at(self, place: int) -> Sample:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self._at(one) for one in range(*index.indices(len(self)))]
        return self._at(range(len(self))[index])


@runtime_checkable
class HasPictures(Protocol):
    """Samples whose pictures may be somewhere else than in files below an image root."""

    def picture(self, place: int, number: int) -> Picture | None:
        """A picture of the sample at a place; None where it is a file."""
        ...


def stored_picture(samples: Sequence[Sample], place: int, number: int) -> Picture | None:
    """A picture that is in an archive; None where it is a file below the image root.

    Raises:
        ImageError: the archive cannot be read any more.
    """
    return samples.picture(place, number) if isinstance(samples, HasPictures) else None


def picture_of(samples: Sequence[Sample], place: int, number: int, root: Path) -> Picture:
    """A picture of a sample, wherever it is.

    Args:
        samples: whose place counts.
        place: of the sample.
        number: of the picture among the sample's.
        root: folder that image paths start from.

    Raises:
        ImageError: its path leaves `root`, or its archive cannot be read any more.
    """
    if (stored := stored_picture(samples, place, number)) is not None:
        return stored
    name = samples[place].images[number]
    return Picture(name, path=resolve_image(name, root))
