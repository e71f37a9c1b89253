"""The pieces of a packed row, and what attention over them is computed from.

A row consists of *pieces*. A piece attends to itself, causally, and to its prefix piece, if it has one:

    separate sample                [ start … stop )
    samples that share an image    [ prefix )  [ branch )  [ branch )  …      each branch sees the prefix and itself
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Way = Literal["varlen", "flex", "loop", "mask"]
"""A way to compute attention, see `aligngpt.model.packing.ways`."""


class Piece(NamedTuple):
    """A span of tokens of a packed row and the prefix span it also sees; none if `prefix_start == prefix_stop`."""

    start: int
    stop: int
    prefix_start: int
    prefix_stop: int

    @property
    def prefix(self) -> int:
        """The number of tokens of the prefix."""
        return self.prefix_stop - self.prefix_start

    @property
    def seen(self) -> int:
        """The number of tokens that the last token of the piece may see."""
        return self.prefix + self.stop - self.start


PROBE = (Piece(0, 3, 0, 0), Piece(3, 6, 0, 3), Piece(6, 9, 0, 3), Piece(9, 12, 9, 9))
"""A prefix, two branches and a separate sample, to test a language model with."""


class Pieces:
    """The pieces of a row, with the lengths and places that the kernels read, made once on the CPU.

    A plain class: torch's wrappers for several devices copy data classes and tuples among a model's arguments.

    Args:
        pieces: cover the row from its first token to its last.
        padded: the last piece is padding.

    Attributes:
        pieces, padded: as given.
        samples: number of samples; each piece without a prefix begins a new one.
        sample_of_token: the sample of each token, `(1, length)`.
        queries, keys: running totals, from 0, of each piece's own tokens and of those that it sees, `(pieces + 1,)`,
            int32.
        longest_query, longest_key: the longest of each.
        key_places: where the tokens that each piece sees stand in the row, `(sum of keys,)`; None if no piece has a
            prefix, since keys and queries are then the same.
        way: how to compute attention, to compare ways; None chooses the one that fits device and layer.
    """

    way: Way | None = None

    def __init__(self, pieces: Iterable[Piece], *, padded: bool = False) -> None:
        self.pieces = tuple(pieces)
        self.padded = padded
        own = [piece.stop - piece.start for piece in self.pieces]
        seen = [piece.seen for piece in self.pieces]
        starts = [piece.start for piece in self.pieces if not piece.prefix]
        lengths = torch.tensor([*starts[1:], self.pieces[-1].stop]) - torch.tensor(starts)
        self.samples = len(starts)
        self.sample_of_token = torch.arange(len(starts)).repeat_interleave(lengths).unsqueeze(0)
        self.queries, self.keys = _running(own), _running(seen)
        self.longest_query, self.longest_key = max(own), max(seen)
        self.key_places: Tensor | None = None
        if own != seen:
            spans = [(span.prefix_start, span.prefix_stop) for span in self.pieces], self.pieces
            self.key_places = torch.cat(
                [torch.arange(*span) for pair in zip(*spans, strict=True) for span in (pair[0], pair[1][:2])]
            )
        self._made: dict[Any, Any] = {}

    @classmethod
    def of(cls, pieces: "Pieces | Tensor | Iterable[Piece]") -> "Pieces":
        """These pieces; also from a table of integers `(pieces, 4)`, the columns of `Piece`."""
        if isinstance(pieces, Pieces):
            return pieces
        return cls(Piece(*row) for row in (pieces.tolist() if isinstance(pieces, Tensor) else pieces))

    @property
    def unpadded(self) -> tuple[Piece, ...]:
        """The pieces without padding."""
        return self.pieces[:-1] if self.padded else self.pieces

    @property
    def length(self) -> int:
        """The number of tokens of the row."""
        return self.pieces[-1].stop

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returned when it was first called with this key: layers of one forward pass share masks."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Pieces":
        """A copy whose tensors are on a device."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Pieces":
        """A copy whose tensors are in pinned memory, as data loaders do before a copy that blocks nothing."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Pieces":
        copy = object.__new__(Pieces)
        copy.__dict__ |= self.__dict__
        for name, value in self.__dict__.items():
            if isinstance(value, Tensor):
                setattr(copy, name, change(value))
        copy._made = {}
        return copy


def _running(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
