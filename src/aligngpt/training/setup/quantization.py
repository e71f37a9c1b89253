"""Quantisation of a frozen language model to 4 bits per weight, under trainable adapters (QLoRA, arXiv 2305.14314)."""

from typing import Any

import torch
from torch import nn

from aligngpt.errors import AlignGPTError
from aligngpt.model.modeling import AlignGPTForConditionalGeneration

BLOCK = 64
SMALL_BYTES = 0.5 + (1 + 4 / 256) / BLOCK
"""Bytes per weight: 4 bits, plus its part of an 8-bit scale per block and of a 4-byte scale per 256 blocks."""


def quantize_language_model(
    model: AlignGPTForConditionalGeneration, device: torch.device, compute_dtype: torch.dtype
) -> None:
    """Quantise the language model's linear layers to 4 bits (NF4, with double quantisation), in place.

    Head, embeddings and norms are not quantised, nor are layers whose number of input features is not a multiple of 64.
    The quantised layers are moved to `device`.

    Args:
        model: with weights, before adapters are added.
        device: on which the layers are quantised, one after the other.
        compute_dtype: of the matrix products; weights are dequantised to it for each.

    Raises:
        AlignGPTError: bitsandbytes is not installed, or the model has no layer that can be quantised.
    """
    bitsandbytes = bitsandbytes_for("lora.bits", "remove it")
    body = model.model.language_model
    # Each block of 64 weights has a scale. If rows do not end with a block, bitsandbytes 0.50 packs wrongly on a CPU.
    layers = [
        (name, layer)
        for name, layer in body.named_modules()
        if type(layer) is nn.Linear and layer.in_features % BLOCK == 0
    ]
    if not layers:
        kind = model.config.get_text_config().model_type
        raise AlignGPTError(
            f"lora.bits: the language model {kind} has no linear layers with a multiple of {BLOCK} input features; "
            "remove lora.bits"
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
        # Otherwise, in evaluation mode on a CPU, it repacks its weights for inference irreversibly and loses gradients.
        small.support_avx512bf16_for_cpu = False
        parent, _, attribute = name.rpartition(".")
        setattr(body.get_submodule(parent), attribute, small.to(device))
    # peft uses this flag to choose the kind of adapter.
    model.is_loaded_in_4bit = True


def quantizable(model: AlignGPTForConditionalGeneration) -> int:
    """Number of frozen weights of the language model that `quantize_language_model` quantises, without adapters."""
    return sum(
        layer.weight.numel()
        for layer in model.model.language_model.modules()
        if type(layer) is nn.Linear and layer.in_features % BLOCK == 0 and not layer.weight.requires_grad
    )


def number_of(parameter: nn.Parameter) -> int:
    """Number of weights in a parameter; one in 4 bits stores two per byte."""
    state: Any = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def bitsandbytes_for(what: str, otherwise: str) -> Any:
    """Import bitsandbytes, an optional dependency.

    Args:
        what: the setting that needs it, for the error message.
        otherwise: the alternative to installing it, for the error message.

    Raises:
        AlignGPTError: it is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise AlignGPTError(f"{what} needs bitsandbytes: pip install bitsandbytes, or {otherwise}") from error
    return bitsandbytes
