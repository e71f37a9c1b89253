"""The tensors of a plain LLaVA under llama.cpp's names and in its layouts."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from aligngpt.exporting.gguf.refusals import ARCHITECTURES, feature_layer
from aligngpt.exporting.loading import ExportError
from aligngpt.model.configuration import AlignGPTConfig

_BLOCK = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_LANGUAGE, _TOWER, _PROJECTOR = "model.language_model.", "model.vision_tower.", "model.multi_modal_projector."


def language_tensors(state: Mapping[str, Tensor], config: AlignGPTConfig) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `model.gguf`, from those that `fold` returns.

    Raises:
        ExportError: llama.cpp has no place for one of the language model's tensors.
    """
    import gguf

    text: Any = config.get_text_config()
    arch = gguf.MODEL_ARCH[ARCHITECTURES[text.model_type]]
    names = gguf.get_tensor_name_map(arch, text.num_hidden_layers)
    for name, tensor in state.items():
        if name.startswith(_LANGUAGE):
            published = "model." + name.removeprefix(_LANGUAGE)
        elif name == "lm_head.weight":
            published = name
        else:
            continue
        found = names.get_name(published, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ExportError(f"llama.cpp's {ARCHITECTURES[text.model_type]} has no tensor like {published}")
        if arch == gguf.MODEL_ARCH.LLAMA and ".attn_q." in found:
            tensor = interleaved(tensor, text.num_attention_heads)
        if arch == gguf.MODEL_ARCH.LLAMA and ".attn_k." in found:
            tensor = interleaved(tensor, text.num_key_value_heads)
        yield found, tensor


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key matrix `(heads · size, inputs)` in the order of llama.cpp's Llama.

    transformers rotates the first half of a head against the second; llama.cpp rotates neighbours.
    """
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def rope_factors(model: Any, text: Any) -> Tensor | None:
    """What llama.cpp divides each rotary frequency by, `(head size / 2,)`; None if the frequencies are not scaled."""
    if text.rope_parameters.get("rope_type", "default") == "default":
        return None
    scaled = model.get_decoder().rotary_emb.inv_freq.float().cpu()
    places = torch.arange(len(scaled), dtype=torch.float32) / len(scaled)
    return (1 / text.rope_parameters["rope_theta"] ** places) / scaled


def vision_tensors(state: Mapping[str, Tensor], config: AlignGPTConfig) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `mmproj.gguf`: the projector, and the tower up to the layer it reads, without the last norm."""
    used = feature_layer(config)
    for name, tensor in state.items():
        if name.startswith(_TOWER):
            inside = name.removeprefix(_TOWER).removeprefix("vision_model.")
            if inside.startswith("encoder.layers."):
                number, rest = inside.removeprefix("encoder.layers.").split(".", 1)
                module, kind = rest.rsplit(".", 1)
                if int(number) < used:
                    yield f"v.blk.{number}.{_BLOCK[module]}.{kind}", tensor
            elif inside.startswith("embeddings.patch_embedding."):
                yield f"v.patch_embd.{inside.rsplit('.', 1)[1]}", tensor
            elif inside == "embeddings.position_embedding.weight":
                yield "v.position_embd.weight", tensor
        elif name.startswith(_PROJECTOR):
            module, kind = name.removeprefix(_PROJECTOR).split(".")
            place = {"linear_1": "mm.0", "linear_2": "mm.2"}[module]
            yield f"{place}.{kind}", tensor
            if not config.multimodal_projector_bias:
                # llama.cpp always adds one.
                yield f"{place}.bias", torch.zeros(len(tensor))
