"""Sequences of samples that do not hold a sample."""

from collections.abc import Sequence
from typing import overload

from aligngpt.data.samples import Sample


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
