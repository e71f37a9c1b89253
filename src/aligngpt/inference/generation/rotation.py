"""Rotary position embeddings whose frequencies follow from the length of a conversation.

`longrope` has two sets of factors, one for conversations up to the original length and one for longer ones; `dynamic`
stretches with the length. Transformers chooses by the largest position of each call, so a conversation must not be in
one call with another, nor be read in pieces.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

BY_LENGTH = ("dynamic", "longrope")


def changes_rotation(config: Any) -> bool:
    """Whether the positions of a language model are rotated otherwise in long conversations than in short ones.

    Args:
        config: configuration of the language model.
    """
    return any(one["rope_type"] in BY_LENGTH for one in _settings(config))


def switching_lengths(config: Any) -> set[int]:
    """Numbers of tokens with which `longrope` changes its factors: what was read before must be read again."""
    return {
        int(one["original_max_position_embeddings"]) + 1 for one in _settings(config) if one["rope_type"] == "longrope"
    }


def forget_lengths(model: nn.Module) -> None:
    """Let the next call of a `dynamic` model stretch by its own length, not by the longest one before."""
    for module in model.modules():
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, 0)


def _settings(config: Any) -> Iterator[dict[str, Any]]:
    """The settings of all layers, or those of each type of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    for one in (found, *found.values()):
        if isinstance(one, dict) and "rope_type" in one:
            yield one
