"""Ways to compute attention over the pieces of a row; all give the same.

| way | how | for |
|---|---|---|
| `varlen` | one flash kernel for the row; branches get copies of their prefix's keys | CUDA, half precision |
| `flex` | FlexAttention: blocks that no token sees are left out | CUDA: single precision, soft caps |
| `loop` | piece by piece, each over the tokens that it sees | any device |
| `mask` | the whole row under a mask; costs the square of the row's length | tests |

A branch's queries are the last of its keys, and the flash kernel's causal mask is aligned to the bottom right: sharing
a prefix then needs no mask, and a sliding window counts back from each query as in a sample of its own.
"""

import inspect
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import varlen as torch_varlen
from torch.utils.checkpoint import checkpoint

from aligngpt.model.packing.pieces import Pieces, Way

WIDEST_HEAD = 256
"""Head width up to which the flash kernel exists; it must also be a multiple of 8."""


def way_for(query: Tensor, *, softcap: float | None, dropout: float) -> Way:
    """The fastest way that is exact for a layer.

    Args:
        query: `(1, heads, length, head width)`.
        softcap: the layer's limit on scores, if it has one.
        dropout: probability of dropping an attention weight, which only `loop` and `mask` can do.
    """
    if query.device.type != "cuda" or dropout:
        return "loop"
    width = query.shape[-1]
    fits = query.dtype in (torch.float16, torch.bfloat16) and width <= WIDEST_HEAD and width % 8 == 0
    return "varlen" if fits and softcap is None and "window_size" in _arguments_of_varlen() else "flex"


def varlen(
    query: Tensor, key: Tensor, value: Tensor, pieces: Pieces, *, scaling: float | None, window: int | None
) -> Tensor:
    """One call of torch's flash kernel for sequences of several lengths; see `packed_attention` for the shapes."""
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if pieces.key_places is not None:
            key, value = _gathered(key, pieces.key_places), _gathered(value, pieces.key_places)
        left = -1 if window is None or pieces.longest_key <= window else window - 1
        # torch 2.11 has no such argument, and its kernel shares heads by itself.
        more: dict[str, Any] = {}
        if "enable_gqa" in _arguments_of_varlen():
            more["enable_gqa"] = query.shape[1] != key.shape[1]
        seen: Any = torch_varlen.varlen_attn(
            query,
            key,
            value,
            pieces.queries,
            pieces.keys,
            pieces.longest_query,
            pieces.longest_key,
            scale=scaling,
            window_size=(left, 0),
            **more,
        )
        return cast(Tensor, seen)

    if pieces.key_places is not None and torch.is_grad_enabled():
        # Otherwise every layer would keep its copies of the prefixes' keys and values for the backward pass.
        seen = checkpoint(attend, query, key, value, use_reentrant=False, preserve_rng_state=False)
    else:
        seen = attend(query, key, value)
    return seen.transpose(0, 1)[None]


def _gathered(tensor: Tensor, places: Tensor) -> Tensor:
    gathered: Tensor = _Gather.apply(tensor, places)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    """`tensor[places]`; gradients of a token that stands in several places are summed in float32."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = tensor.shape
        return tensor.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        total = gradient.new_zeros(ctx.shape, dtype=torch.float32).index_add(0, places, gradient.float())
        return total.to(gradient.dtype), None


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pieces: Pieces,
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """FlexAttention with a block mask that layers with the same window share; no backward pass on a CPU."""
    from torch.nn.attention.flex_attention import create_block_mask

    device, length = query.device, query.shape[2]

    def make() -> object:
        own, prefix, place = _tables(pieces, device)

        def sees(batch: Tensor, head: Tensor, one: Tensor, other: Tensor) -> Tensor:
            seen = (one >= other) & ((own[one] == own[other]) | (prefix[one] == own[other]))
            return seen if window is None else seen & (place[one] - place[other] < window)

        return create_block_mask(sees, 1, None, length, length, device, _compile=device.type == "cuda")

    def capped(score: Tensor, *where: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    seen: Tensor = _flex_attention(device)(
        query,
        key,
        value,
        None if softcap is None else capped,
        pieces.once(("blocks", window), make),
        scaling,
        query.shape[1] != key.shape[1],
    )
    return seen


def loop(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pieces: Pieces,
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Piece by piece, only over the tokens that each sees: as much work as for the samples apart."""
    # Split, not sliced: the gradient of a slice is a tensor as long as the row.
    lengths = [piece.stop - piece.start for piece in pieces.pieces]
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    number = {piece.start: place for place, piece in enumerate(pieces.pieces)}
    seen = []
    for place, piece in enumerate(pieces.pieces):
        own_keys, own_values = keys[place], values[place]
        if piece.prefix:
            prefix = number[piece.prefix_start]
            own_keys = torch.cat([keys[prefix], own_keys], dim=2)
            own_values = torch.cat([values[prefix], own_values], dim=2)
        mask = None
        if piece.prefix or softcap is not None or (window is not None and window < piece.seen):
            make = partial(_mask_of_piece, lengths[place], piece.seen, window, query.device)
            mask = pieces.once(("piece", lengths[place], piece.seen, window), make)
        seen.append(_attention(queries[place], own_keys, own_values, mask, scaling, softcap, dropout))
    return torch.cat(seen, dim=2)


def mask(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pieces: Pieces,
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """The whole row at once, under a mask `(length, length)` that layers with the same window share."""
    seen = pieces.once(("mask", window), lambda: dense_mask(pieces, window, query.device))
    return _attention(query, key, value, seen, scaling, softcap, dropout)


def dense_mask(pieces: Pieces, window: int | None, device: torch.device) -> Tensor:
    """Which tokens (columns) each token (row) sees, boolean `(length, length)`."""
    sees = torch.zeros(pieces.length, pieces.length, dtype=torch.bool)
    for piece in pieces.pieces:
        rows = slice(piece.start, piece.stop)
        part = _mask_of_piece(piece.stop - piece.start, piece.seen, window, torch.device("cpu"))
        sees[rows, piece.prefix_start : piece.prefix_stop] = part[:, : piece.prefix]
        sees[rows, rows] = part[:, piece.prefix :]
    return sees.to(device)


def _mask_of_piece(own: int, seen: int, window: int | None, device: torch.device) -> Tensor:
    """Which of the `seen` tokens each of the last `own` tokens sees, `(own, seen)`."""
    back = torch.arange(seen - own, seen, device=device)[:, None] - torch.arange(seen, device=device)
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    if softcap is None:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            mask,
            dropout,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1) for tensor in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    assert mask is not None
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return F.dropout(weights, dropout) @ value


def _tables(pieces: Pieces, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each token: its piece, the piece that is its prefix (-1: none), and its position in the sample."""
    number = {piece.start: place for place, piece in enumerate(pieces.pieces)}
    lengths = torch.tensor([piece.stop - piece.start for piece in pieces.pieces])

    def per_token(values: list[int]) -> Tensor:
        return torch.tensor(values).repeat_interleave(lengths)

    own = per_token(list(range(len(pieces.pieces))))
    prefix = per_token([number[piece.prefix_start] if piece.prefix else -1 for piece in pieces.pieces])
    shift = per_token([piece.prefix - piece.start for piece in pieces.pieces])
    return own.to(device), prefix.to(device), (torch.arange(pieces.length) + shift).to(device)


def _arguments_of_varlen() -> tuple[str, ...]:
    return tuple(inspect.signature(torch_varlen.varlen_attn).parameters)


_compiled: list[Any] = []


def _flex_attention(device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    if device.type != "cuda":
        return flex_attention
    if not _compiled:
        # Rows have many lengths: one kernel for all of them.
        _compiled.append(torch.compile(flex_attention, dynamic=True))
    return _compiled[0]
