"""The keys and values of the conversations that are being answered, in one batch that grows and shrinks.

All conversations end at the same position; shorter ones begin later. So the next token of each is written at one place,
without copying what is there, and a conversation joins or leaves by copying its own row.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from aligngpt.inference.generation.rotation import changes_rotation

SPARE_TOKENS = 64
"""Room for new tokens that a buffer is enlarged by at least."""

LayerState = tuple[Tensor, Tensor] | None
"""Keys and values `(rows, heads, tokens, width)` of a layer; None for a layer that uses those of another one."""


class PooledLayer(CacheLayerMixin):
    """The keys and values of one layer: a buffer of rows, of which the first `rows` are in use up to `length`.

    It keeps all tokens of a layer with a sliding window too: which of them are attended to is left to the mask.
    """

    is_croppable = True
    is_sliding = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.length = 0
        self.rows = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.rows = len(key_states)
        self.device = key_states.device
        self.keys, self.values = (_buffer(states, self.rows, SPARE_TOKENS) for states in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens `(rows, heads, new, width)`; returns all of them so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self.reserve(self.rows, end)
        self.keys[: self.rows, :, self.length : end] = key_states
        self.values[: self.rows, :, self.length : end] = value_states
        self.length = end
        return self.keys[: self.rows, :, :end], self.values[: self.rows, :, :end]

    def reserve(self, rows: int, length: int) -> None:
        """Enlarge the buffers to hold so many rows and tokens, by more than is needed."""
        held = self.keys.shape
        if rows <= held[0] and length <= held[2]:
            return
        rows = held[0] if rows <= held[0] else max(rows, 2 * held[0])
        length = held[2] if length <= held[2] else max(length + SPARE_TOKENS, length * 3 // 2)
        # Both before either takes its place: without memory for the second, nothing has changed.
        self.keys, self.values = (self._enlarged(old, rows, length) for old in (self.keys, self.values))

    def _enlarged(self, old: Tensor, rows: int, length: int) -> Tensor:
        new = _buffer(old, rows, length)
        new[: self.rows, :, : self.length] = old[: self.rows, :, : self.length]
        return new

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


def _buffer(like: Tensor, rows: int, length: int) -> Tensor:
    # Zeros, not just memory: what is masked out must still be a number.
    return like.new_zeros(rows, like.shape[1], length, like.shape[3])


class PooledCache(Cache):
    """The cache of all conversations that are being answered together; its layers are made as they are used.

    Attributes:
        starts: where each row's conversation begins, one entry per row; before it is padding.
        is_damaged: whether `join` failed on the way, so that layers may disagree and no row can go on.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=PooledLayer)
        self.starts: list[int] = []
        self.is_damaged = False

    @property
    def length(self) -> int:
        """Position that the next token of every row is written to."""
        return max((layer.length for layer in self.layers), default=0)

    def positions(self, device: torch.device) -> Tensor:
        """Position of the next token in each conversation, `(rows, 1)`."""
        return torch.tensor([[self.length - start] for start in self.starts], device=device)

    def mask(self, device: torch.device) -> Tensor | None:
        """Which tokens, the next one among them, are no padding, `(rows, length + 1)`; None if none is."""
        if not any(self.starts):
            return None
        places = torch.arange(self.length + 1, device=device)
        return (places >= torch.tensor(self.starts, device=device).unsqueeze(1)).long()

    def join(self, states: Sequence[LayerState], starts: Sequence[int]) -> None:
        """Add rows, padded or shortened on the left to end where all others do.

        If there is no memory for them, the rows that are here are unharmed, unless `is_damaged` says otherwise.

        Args:
            states: keys and values per layer; all with the same number of tokens.
            starts: where the conversation of each new row begins in them.
        """
        new = next(state[0].shape[2] for state in states if state is not None)
        if not self.starts:
            self._clear()
        longest = max(new - min(starts), self.length - min(self.starts) if self.starts else 0)
        for layer in self.layers:
            if layer.is_initialized:
                layer.reserve(layer.rows + len(starts), max(longest, layer.length))
        try:
            self._move_end(longest)
            shift = longest - new
            self.layers += [PooledLayer() for _ in range(len(self.layers), len(states))]
            for layer, state in zip(self.layers, states, strict=True):
                if state is not None:
                    _write_rows(layer, state, longest)
        except BaseException:
            self.is_damaged = True
            raise
        self.starts += [start + shift for start in starts]

    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its place."""
        last = len(self.starts) - 1
        for layer in self.layers:
            if layer.is_initialized:
                if row != last:
                    layer.keys[row, :, : layer.length] = layer.keys[last, :, : layer.length]
                    layer.values[row, :, : layer.length] = layer.values[last, :, : layer.length]
                layer.rows = last
        self.starts[row] = self.starts[last]
        del self.starts[last]

    def copied(self, row: int) -> list[LayerState]:
        """The keys and values of a row, without padding, as tensors of their own."""
        start = self.starts[row]
        return [
            None
            if state is None
            else (state[0][row : row + 1, :, start:].clone(), state[1][row : row + 1, :, start:].clone())
            for state in self.states()
        ]

    def states(self) -> list[LayerState]:
        """The keys and values of all rows, with their padding; views."""
        return [
            (layer.keys[: layer.rows, :, : layer.length], layer.values[: layer.rows, :, : layer.length])
            if layer.is_initialized
            else None
            for layer in self.layers
        ]

    def _clear(self) -> None:
        for layer in self.layers:
            layer.rows = layer.length = 0

    def _move_end(self, length: int) -> None:
        """Move all rows, so that they end at `length`."""
        by = length - self.length
        if not self.starts or not by:
            return
        begin = min(self.starts)
        for layer in self.layers:
            if layer.is_initialized:
                layer.reserve(layer.rows, length)
                for buffer in (layer.keys, layer.values):
                    moved = buffer[: layer.rows, :, begin : layer.length].clone()
                    buffer[: layer.rows, :, begin + by : length] = moved
                layer.length = length
        self.starts = [start + by for start in self.starts]


def _write_rows(layer: PooledLayer, state: tuple[Tensor, Tensor], end: int) -> None:
    keys, values = state
    rows, new = len(keys), keys.shape[2]
    if not layer.is_initialized:
        layer.lazy_initialization(keys, values)
        layer.rows = 0
    layer.reserve(layer.rows + rows, end)
    kept = min(new, end)
    for buffer, states in ((layer.keys, keys), (layer.values, values)):
        place = buffer[layer.rows : layer.rows + rows]
        place[:, :, : end - kept] = 0
        place[:, :, end - kept : end] = states[:, :, new - kept :]
    layer.rows += rows
    layer.length = end


def can_be_pooled(config: Any) -> bool:
    """Whether conversations of a language model can share a cache.

    Recurrent and other states than keys and values cannot be padded on the left and joined. Nor can keys whose rotation
    follows from the longest conversation of a step rather than from their own (see `changes_rotation`).
    """
    return not changes_rotation(config) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=config).layers
    )
