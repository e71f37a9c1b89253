"""Attention for packed rows: several samples behind each other in one row, without padding, none sees another.

A row is made of *pieces*. A piece sees itself, causally, and before that the piece that is its prefix, if it has one:

    sample of its own              [ start … stop )
    samples that share an image    [ prefix )  [ branch )  [ branch )  …      each branch sees the prefix and itself

Attention is computed piece by piece, on what each sees and nothing else, so it costs what the samples cost alone, and
the rest of a layer runs over tokens without gaps. transformers calls it like any other kind of attention, by `NAME`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

NAME = "aligngpt_packed"
PACKED_TOLERANCE = {True: 1e-4, False: 0.05}
"""What may differ, relatively: in single precision, and in less."""


class Piece(NamedTuple):
    """A run of tokens of a packed row, and the run it sees as well; no prefix where `prefix_start == prefix_stop`."""

    start: int
    stop: int
    prefix_start: int
    prefix_stop: int


def pieces_of(table: Tensor | Sequence[Sequence[int]]) -> tuple[Piece, ...]:
    """The pieces of a row from a table `(pieces, 4)`."""
    rows = table.tolist() if isinstance(table, Tensor) else table
    return tuple(Piece(*row) for row in rows)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    pieces: tuple[Piece, ...] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention over the pieces of a row.

    Args:
        module: the attention layer that asks.
        query: `(1, heads, length, head width)`; `key` and `value` may have fewer heads.
        attention_mask: not used; who sees whom follows from the pieces.
        pieces: cover the row from its first token to its last.
        scaling: of the products; one over the root of the head width when None.
        dropout: of the weights.
        sliding_window: how far back the layer sees.
        **kwargs: what transformers tells other kinds of attention.

    Returns:
        `(1, length, heads, head width)`, and no weights.

    Raises:
        ValueError: there are no pieces, a sample is longer than the layer sees, or the layer wants something else that
            is not done here.
    """
    if pieces is None:
        raise ValueError(f"attention of the kind {NAME} is for packed rows, which come with their pieces")
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"attention of the kind {NAME} knows no {name}")
    longest = max(piece.stop - piece.start + piece.prefix_stop - piece.prefix_start for piece in pieces)
    if sliding_window is not None and longest > sliding_window:
        raise ValueError(f"a sample of {longest} tokens is longer than the {sliding_window} that a layer sees")
    # Split, not sliced: the gradient of a slice is a tensor as long as the row.
    lengths = [piece.stop - piece.start for piece in pieces]
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    number = {piece.start: place for place, piece in enumerate(pieces)}
    fewer_heads = query.shape[1] != key.shape[1]
    seen = []
    for place, piece in enumerate(pieces):
        own_keys, own_values, mask = keys[place], values[place], None
        if before := piece.prefix_stop - piece.prefix_start:
            prefix = number[piece.prefix_start]
            own_keys = torch.cat([keys[prefix], own_keys], dim=2)
            own_values = torch.cat([values[prefix], own_values], dim=2)
            mask = torch.ones(lengths[place], before + lengths[place], dtype=torch.bool, device=query.device).tril(
                before
            )
        seen.append(
            F.scaled_dot_product_attention(
                queries[place],
                own_keys,
                own_values,
                mask,
                dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=fewer_heads,
            )
        )
    return torch.cat(seen, dim=2).transpose(1, 2), None


# How a row is cut is another one in every batch: where layers are compiled, this part of them is not.
AttentionInterface.register(NAME, torch.compiler.disable(packed_attention))


def can_pack(language_model: PreTrainedModel, length: int) -> bool:
    """Whether a language model computes the same for packed samples of up to `length` tokens as for each alone.

    Tried on a few tokens rather than looked up: a model passes its inputs on to its attention, or it does not.
    """
    config = language_model.config
    window = getattr(config, "sliding_window", None)
    if language_model._is_stateful or (window is not None and window < length):
        return False
    kind = config._attn_implementation
    ids = torch.arange(6, device=language_model.device).unsqueeze(0) % config.vocab_size
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]], device=language_model.device)
    was_training = language_model.training
    language_model.eval()
    try:
        with torch.no_grad():
            expected = torch.cat([_run(language_model, part) for part in ids.chunk(2, dim=-1)], dim=1)
            language_model.set_attn_implementation(NAME)
            pieces = (Piece(0, 3, 0, 0), Piece(3, 6, 3, 3))
            found = _run(language_model, ids, position_ids=positions, pieces=pieces)
    except (ValueError, TypeError, RuntimeError, KeyError):
        return False
    finally:
        language_model.set_attn_implementation(kind)
        language_model.train(was_training)
    return bool((found - expected).norm() <= PACKED_TOLERANCE[found.dtype == torch.float32] * expected.norm())


def _run(language_model: PreTrainedModel, ids: Tensor, **inputs: object) -> Tensor:
    return language_model(input_ids=ids, use_cache=False, **inputs).last_hidden_state
