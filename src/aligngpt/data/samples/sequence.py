"""Lazy sequences of samples, and access to images stored in archives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, overload, runtime_checkable

from aligngpt.data.images.opening import resolve_image
from aligngpt.data.images.reference import Picture
from aligngpt.data.records.sample import Sample


class LazySamples(Sequence[Sample]):
    """A sequence whose samples are created on access, by `_at`."""

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
    """Samples whose images may be stored elsewhere than in files below an image root."""

    def picture(self, place: int, number: int) -> Picture | None:
        """Image `number` of the sample at index `place`; None if it is a file below the image root."""
        ...


def stored_picture(samples: Sequence[Sample], place: int, number: int) -> Picture | None:
    """An image stored in an archive; None if it is a file below the image root.

    Raises:
        ImageError: the archive can no longer be read.
    """
    return samples.picture(place, number) if isinstance(samples, HasPictures) else None


def picture_of(samples: Sequence[Sample], place: int, number: int, root: Path) -> Picture:
    """An image of a sample, in an archive or a file.

    Args:
        samples: the sequence that `place` indexes.
        place: index of the sample.
        number: number of the image within the sample.
        root: folder that image paths are relative to.

    Raises:
        ImageError: its path points outside `root`, or its archive can no longer be read.
    """
    if (stored := stored_picture(samples, place, number)) is not None:
        return stored
    name = samples[place].images[number]
    return Picture(name, path=resolve_image(name, root))
