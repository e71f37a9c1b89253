"""Attention for packed rows: several samples one after another in a row, without padding or attention across them.

A row consists of *pieces*. A piece attends to itself, causally, and to its prefix piece, if it has one:

    separate sample                [ start … stop )
    samples that share an image    [ prefix )  [ branch )  [ branch )  …      each branch sees the prefix and itself

Attention is computed piece by piece, only over the tokens each one sees, so it costs as much as for the separate
samples, and the rest of a layer runs over tokens without gaps. It is registered with transformers under `NAME`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

NAME = "aligngpt_packed"
PACKED_TOLERANCE = {True: 1e-4, False: 0.05}
"""Relative tolerance, keyed by whether the precision is single (or lower)."""


class Piece(NamedTuple):
    """A span of tokens of a packed row and the prefix span it also sees; none if `prefix_start == prefix_stop`."""

    start: int
    stop: int
    prefix_start: int
    prefix_stop: int


PROBE = (Piece(0, 3, 0, 0), Piece(3, 6, 0, 3), Piece(6, 9, 0, 3), Piece(9, 12, 9, 9))
"""A prefix, two branches and a separate sample, to test a language model with."""


def pieces_of(table: Tensor | Sequence[Sequence[int]]) -> tuple[Piece, ...]:
    """The pieces of a row, from a table `(pieces, 4)`."""
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
    """Compute attention over the pieces of a row.

    Args:
        module: the calling attention layer; not used.
        query: `(1, heads, length, head width)`; `key` and `value` may have fewer heads.
        attention_mask: not used; the pieces determine which tokens see each other.
        pieces: cover the row from its first token to its last.
        scaling: factor of the dot products; one over the root of the head width when None.
        dropout: probability of dropping an attention weight.
        sliding_window: number of tokens that the layer sees.
        **kwargs: arguments that transformers passes to other attention implementations.

    Returns:
        `(1, length, heads, head width)`, and no weights.

    Raises:
        ValueError: there are no pieces, a sample is longer than the sliding window, or the layer asks for an
            unsupported feature.
    """
    if pieces is None:
        raise ValueError(f"{NAME} attention is for packed rows, which must come with their pieces")
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{NAME} attention does not support {name}")
    longest = max(piece.stop - piece.start + piece.prefix_stop - piece.prefix_start for piece in pieces)
    if sliding_window is not None and longest > sliding_window:
        raise ValueError(f"a sample of {longest} tokens is longer than the {sliding_window} tokens that a layer sees")
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


# Pieces differ in every batch, so this function is excluded when layers are compiled.
AttentionInterface.register(NAME, torch.compiler.disable(packed_attention))


def can_pack(language_model: PreTrainedModel, length: int) -> bool:
    """Whether a language model computes the same for packed samples of up to `length` tokens as for each alone.

    Tested on a few tokens rather than looked up, since a model may or may not pass `pieces` on to its attention.
    """
    if language_model._is_stateful or ((window := shortest_window(language_model.config)) and window < length):
        return False
    kind = language_model.config._attn_implementation
    try:
        language_model.set_attn_implementation(NAME)
        return computes_as_alone(
            language_model,
            PROBE,
            together=lambda ids, positions: _run(language_model, ids, position_ids=positions, pieces=PROBE),
            reference=lambda ids: _as(language_model, kind, ids),
        )
    except Exception:
        # Language models that do not support the attention or its arguments may raise anything.
        return False
    finally:
        language_model.set_attn_implementation(kind)


def shortest_window(config: PretrainedConfig) -> int | None:
    """The smallest number of tokens that any layer attends to; None if the configuration sets no limit.

    Configurations call it `sliding_window`, `window_size`, `attention_chunk_size` and more, or `index_topk` if a
    layer selects the tokens it attends to; 0 means no limit.
    """
    found = [
        value
        for name, value in config.to_dict().items()
        if isinstance(value, int) and not isinstance(value, bool) and value > 0 and _is_window(name)
    ]
    return min(found, default=None)


def _is_window(name: str) -> bool:
    # Excludes settings that list the layers with a window or split a layer's computation into chunks.
    return name == "index_topk" or (
        ("window" in name or "chunk" in name)
        and not any(other in name for other in ("layers", "pattern", "feed_forward", "lm_head", "mamba"))
    )


def computes_as_alone(
    language_model: PreTrainedModel,
    pieces: Sequence[Piece],
    *,
    together: Callable[[Tensor, Tensor], Tensor],
    reference: Callable[[Tensor], Tensor],
) -> bool:
    """Whether pieces in one row have the same hidden states as each alone with its prefix, and see nothing else.

    Changing one piece must change the pieces that see it and leave all others bit-identical.

    Args:
        language_model: provides device and vocabulary size; in evaluation mode while this runs.
        pieces: the pieces of the row, as in `packed_attention`.
        together: returns the hidden states of a row, given ids and positions `(1, length)`.
        reference: returns the hidden states of one sequence, given ids `(1, length)`.
    """
    vocabulary, device = language_model.config.vocab_size, language_model.device
    length = pieces[-1].stop
    ids = torch.arange(length, device=device).unsqueeze(0) % (vocabulary - 1)
    positions = torch.cat([_places(piece)[piece.prefix_stop - piece.prefix_start :] for piece in pieces])
    positions = positions.unsqueeze(0).to(device)
    was_training = language_model.training
    language_model.eval()
    try:
        with torch.no_grad():
            found = together(ids, positions)[0]
            exact = found.dtype == torch.float32
            for piece in pieces:
                before, own = slice(piece.prefix_start, piece.prefix_stop), slice(piece.start, piece.stop)
                alone = torch.cat([ids[:, before], ids[:, own]], dim=1)
                expected = reference(alone)[0, piece.prefix_stop - piece.prefix_start :]
                if not (found[own] - expected).norm() <= PACKED_TOLERANCE[exact] * expected.norm():
                    return False
                changed = ids.clone()
                changed[0, own] = (changed[0, own] + 1) % vocabulary
                difference = (together(changed, positions)[0] - found).norm(dim=-1)
                for other in pieces:
                    sees = other == piece or (other.prefix_start, other.prefix_stop) == (piece.start, piece.stop)
                    of_other = difference[other.start : other.stop]
                    if sees and not (of_other > 0).all():
                        return False
                    # Experts are computed in groups, whose size may change the last bit of other tokens.
                    rounding = 1e-5 * found[other.start : other.stop].norm(dim=-1) if exact else 0
                    if not sees and (of_other > rounding).any():
                        return False
    finally:
        language_model.train(was_training)
    return True


def _places(piece: Piece) -> Tensor:
    return torch.arange(piece.prefix_stop - piece.prefix_start + piece.stop - piece.start)


def _as(language_model: PreTrainedModel, kind: str, ids: Tensor) -> Tensor:
    language_model.set_attn_implementation(kind)
    try:
        return _run(language_model, ids)
    finally:
        language_model.set_attn_implementation(NAME)


def _run(language_model: PreTrainedModel, ids: Tensor, **inputs: object) -> Tensor:
    return language_model(input_ids=ids, use_cache=False, **inputs).last_hidden_state
