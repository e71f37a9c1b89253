"""Estimate the activation memory of a training step: the tensors that autograd saves for the backward pass.

This is measured, not a formula with constants: the language model's own layers run on fake tensors, which have shapes
but no memory, and the sizes of the tensors that autograd saves are summed. The difference between two layers and one
is one layer, that between two rows and one is one row; anything that depends on neither, such as weights, cancels out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModel, PretrainedConfig

from aligngpt.training.experts_on_fake_tensors import NAME as FIRST_EXPERT

FLOAT32, BFLOAT16 = 4, 2
LOGIT_BYTES = 12
"""Bytes for each logit at the peak of the loss, measured: the logits, what the softmax is computed in, and gradients.
In bfloat16, where logits have a copy in float32, it is no less."""


class NotEstimated(Exception):
    """The layers of a language model cannot be run without memory; the message says why."""


def layer_bytes(config: PretrainedConfig, length: int, *, trains: bool, in_bfloat16: bool) -> float:
    """Bytes that one layer of a language model saves per row for the backward pass.

    Args:
        config: the language model's configuration.
        length: of the row, in tokens.
        trains: whether its weights train (or have adapters, which need the same memory); if not, only its inputs do.
        in_bfloat16: whether it computes under autocast to bfloat16, with weights in float32.

    Raises:
        NotEstimated: a language model of one or two such layers cannot be made or run on fake tensors.
    """
    how = {"trains": trains, "in_bfloat16": in_bfloat16}

    def of_a_row(layers: int) -> int:
        return _kept(config, layers, 2, length, **how) - _kept(config, layers, 1, length, **how)

    try:
        return of_a_row(2) - of_a_row(1)
    # What a family does not support on fake tensors may raise anything.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NotEstimated(f"{config.model_type}: {reason}") from error


def body_bytes(layer: float, read: float, recomputed: Sequence[bool]) -> float:
    """The most bytes that all layers hold per row at any time of the backward pass, which runs from the last layer on.

    Args:
        layer: bytes that one layer saves, see `layer_bytes`.
        read: bytes of the input of a layer, all that a recomputed one keeps.
        recomputed: for each layer, whether it is recomputed when the backward pass reaches it.
    """
    kept = len(recomputed) - sum(recomputed)
    inputs = sum(recomputed) * read
    if not any(recomputed):
        return kept * layer
    # The layers behind the last recomputed one are done, and have freed what they saved, when that one is recomputed.
    done = [*reversed(recomputed)].index(True)
    return inputs + max(kept, kept - done + 1) * layer


def head_bytes(vocabulary: int) -> int:
    """Bytes that the head and the loss hold at once for each token whose logits exist."""
    return LOGIT_BYTES * vocabulary


def _kept(config: PretrainedConfig, layers: int, rows: int, length: int, *, trains: bool, in_bfloat16: bool) -> int:
    few = type(config).from_dict(_with_layers(config, layers))
    few._attn_implementation = config._attn_implementation
    few._experts_implementation = FIRST_EXPERT
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with FakeTensorMode():
        body = AutoModel.from_config(few)
        body.requires_grad_(trains)
        embeds = torch.zeros(rows, length, int(few.hidden_size), requires_grad=True)
        with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, in_bfloat16):
            body(inputs_embeds=embeds, use_cache=False)
    return sum(storage.nbytes() for storage in storages.values())


def _with_layers(config: PretrainedConfig, layers: int) -> dict[str, Any]:
    """The settings of a language model with only the first `layers` layers."""
    every = int(config.num_hidden_layers)
    named = {"layer_types", "mlp_layer_types", "layers_block_type"}
    settings: dict[str, Any] = config.to_dict() | {"num_hidden_layers": layers}
    for name, value in settings.items():
        # Others with one entry per layer are known by their length, unless it is one of a pair, or by layers as keys.
        if isinstance(value, list | tuple) and len(value) == every and (every > 2 or name in named):
            settings[name] = value[:layers]
        elif isinstance(value, dict) and value and all(str(key).isdecimal() for key in value):
            settings[name] = {key: one for key, one in value.items() if int(key) < layers}
    return settings
