"""Attention for packed rows: several samples one after another in a row, without padding or attention across them.

It is registered with transformers under `NAME`: layers call it with everything they know (window, soft cap, scale), so
no model's forward pass is copied, and no mask is passed through the model.
"""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from aligngpt.model.packing.pieces import Pieces
from aligngpt.model.packing.ways import flex, loop, mask, varlen, way_for

NAME = "aligngpt_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    pieces: Pieces | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Compute attention over the pieces of a row, in the way that fits the device and the layer.

    Args:
        module: the calling attention layer; not used.
        query: `(1, heads, length, head width)`; `key` and `value` may have fewer heads.
        attention_mask: not used; the pieces determine which tokens see each other.
        pieces: of the row.
        scaling: factor of the dot products; one over the root of the head width when None.
        dropout: probability of dropping an attention weight.
        sliding_window: number of tokens that the layer sees, the token itself included.
        softcap: scores `s` become `softcap · tanh(s / softcap)`.
        **kwargs: arguments that transformers passes to other attention implementations.

    Returns:
        `(1, length, heads, head width)`, and no weights.

    Raises:
        ValueError: there are no pieces, or the layer asks for an unsupported feature.
    """
    if pieces is None:
        raise ValueError(f"{NAME} attention is for packed rows, which must come with their pieces")
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{NAME} attention does not support {name}")
    if torch.is_autocast_enabled(query.device.type):
        # As for torch's own attention: rotary embeddings leave queries and keys in single precision.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    way = pieces.way or way_for(query, softcap=softcap, dropout=dropout)
    if way == "varlen":
        seen = varlen(query, key, value, pieces, scaling=scaling, window=sliding_window)
    elif way == "flex":
        seen = flex(query, key, value, pieces, scaling=scaling, window=sliding_window, softcap=softcap)
    else:
        compute = loop if way == "loop" else mask
        seen = compute(
            query, key, value, pieces, scaling=scaling, window=sliding_window, softcap=softcap, dropout=dropout
        )
    return seen.transpose(1, 2), None


# Pieces differ in every batch, so this function is excluded when layers are compiled.
AttentionInterface.register(NAME, torch.compiler.disable(packed_attention))
