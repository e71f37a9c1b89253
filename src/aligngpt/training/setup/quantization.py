"""A frozen language model in 4 bits a weight, beneath adapters that train (QLoRA, arXiv 2305.14314)."""

from typing import Any

import torch
from torch import nn

from aligngpt.errors import AlignGPTError
from aligngpt.model.modeling import AlignGPTForConditionalGeneration

BLOCK = 64
SMALL_BYTES = 0.5 + (1 + 4 / 256) / BLOCK
"""Of a weight: 4 bits, and its part of a scale in 8 bits and of this one's own scale."""


def quantize_language_model(
    model: AlignGPTForConditionalGeneration, device: torch.device, compute_dtype: torch.dtype
) -> None:
    """Hold the weights of the language model's linear layers in 4 bits (NF4, its scales quantised again), in place.

    Head, embeddings and norms stay as they are, and so do layers that read a number of features which is no multiple of
    64. The quantised layers are then on `device`.

    Args:
        model: with weights, before adapters are added.
        device: on which they are quantised, one layer after the other.
        compute_dtype: of the products; weights are unpacked to it for each.

    Raises:
        AlignGPTError: bitsandbytes is not installed, or the model has no layer that it can quantise.
    """
    bitsandbytes = bitsandbytes_for("lora.bits", "leave it out")
    body = model.model.language_model
    # Each 64 weights have a scale. Where such blocks do not end with a row, bitsandbytes 0.50 packs wrongly on a CPU.
    layers = [
        (name, layer)
        for name, layer in body.named_modules()
        if type(layer) is nn.Linear and layer.in_features % BLOCK == 0
    ]
    if not layers:
        kind = model.config.get_text_config().model_type
        raise AlignGPTError(
            f"lora.bits: the language model {kind} has no linear layers of a multiple of {BLOCK} features; leave "
            "lora.bits out"
        )
    for name, layer in layers:
        small = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=compute_dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        small.weight = bitsandbytes.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
        )
        small.bias = layer.bias
        # In evaluation it would repack its weights for inference on a CPU, for good, and then has no gradients.
        small.support_avx512bf16_for_cpu = False
        parent, _, attribute = name.rpartition(".")
        setattr(body.get_submodule(parent), attribute, small.to(device))
    # What peft goes by when it chooses the kind of adapter.
    model.is_loaded_in_4bit = True


def quantizable(model: AlignGPTForConditionalGeneration) -> int:
    """How many frozen weights of the language model `quantize_language_model` holds in 4 bits, adapters left out."""
    return sum(
        layer.weight.numel()
        for layer in model.model.language_model.modules()
        if type(layer) is nn.Linear and layer.in_features % BLOCK == 0 and not layer.weight.requires_grad
    )


def number_of(parameter: nn.Parameter) -> int:
    """How many numbers a parameter stands for: two to a byte where it is held in 4 bits."""
    state: Any = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def bitsandbytes_for(what: str, otherwise: str) -> Any:
    """The package bitsandbytes, which is an extra.

    Args:
        what: setting that needs it.
        otherwise: what to do without.

    Raises:
        AlignGPTError: it is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise AlignGPTError(f"{what} needs bitsandbytes: pip install bitsandbytes; or {otherwise}") from error
    return bitsandbytes
