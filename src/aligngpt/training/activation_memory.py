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

FLOAT32, BFLOAT16 = 4, 2
LOGIT_BYTES = 12
"""Bytes for each logit at the peak of the loss, measured: the logits, what the softmax is computed in, and gradients.
In bfloat16, where logits have a copy in float32, it is no less."""
PER_LAYER = {"layer_types", "mlp_layer_types", "layers_block_type"}
"""Configuration settings with one entry per layer."""


def layer_bytes(config: PretrainedConfig, length: int, *, trains: bool, in_bfloat16: bool) -> float:
    """Bytes that one layer of a language model saves per row for the backward pass.

    Args:
        config: the language model's configuration.
        length: of the row, in tokens.
        trains: whether its weights train (or have adapters, which need the same memory); if not, only its inputs do.
        in_bfloat16: whether it computes under autocast to bfloat16, with weights in float32.
    """
    how = {"trains": trains, "in_bfloat16": in_bfloat16}

    def of_a_row(layers: int) -> int:
        return _kept(config, layers, 2, length, **how) - _kept(config, layers, 1, length, **how)

    return of_a_row(2) - of_a_row(1)


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
    settings = config.to_dict()
    settings |= {"num_hidden_layers": layers} | {name: settings[name][:layers] for name in PER_LAYER & settings.keys()}
    few = type(config).from_dict(settings)
    few._attn_implementation = config._attn_implementation
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
