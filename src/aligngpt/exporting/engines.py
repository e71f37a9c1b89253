"""Which programs can read a model as a plain LLaVA, and why others cannot."""

from typing import Literal

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from aligngpt.exporting.loading import ExportError
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.modeling import LOGIT_SETTINGS

Engine = Literal["transformers", "vllm"]

OURS = "aligngpt ask, aligngpt evaluate and the library run it"
VLLM_TOWERS = ("clip_vision_model", "siglip_vision_model")
VLLM_LANGUAGE_MODELS = ("llama", "mistral", "qwen2", "qwen3", "phi3")
"""Those that vLLM's LLaVA finds the weights of and that may have a head of their own there (Gemma's may not)."""


def plain_model(config: AlignGPTConfig) -> LlavaForConditionalGeneration:
    """The plain LLaVA of a model, without values (on the meta device): no fields of ours, and a head of its own.

    Raises:
        ExportError: no plain LLaVA computes what this model computes, or transformers cannot build one with its parts.
    """
    if refusal := refused_by_llava(config):
        raise ExportError(f"{refusal}, which a plain LLaVA cannot do; {OURS}")
    text = config.text_config.to_dict() | {"tie_word_embeddings": False}
    layers = config.vision_feature_layer
    plain = LlavaConfig(
        vision_config=config.vision_config.to_dict(),
        text_config=text,
        image_token_index=config.image_token_index,
        image_seq_length=config.image_seq_length,
        projector_hidden_act=config.projector_hidden_act,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        vision_feature_layer=layers if isinstance(layers, int) or len(layers) > 1 else layers[0],
        multimodal_projector_bias=config.multimodal_projector_bias,
        tie_word_embeddings=False,
        dtype=config.dtype,
    )
    try:
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(plain)
    # Configurations of other kinds of networks may raise anything.
    except Exception as error:
        raise ExportError(
            f"transformers' LlavaForConditionalGeneration cannot be built with the vision tower "
            f"{plain.vision_config.model_type} and the language model {plain.text_config.model_type} "
            f"({str(error).splitlines()[0][:200]}); {OURS}"
        ) from error
    # Otherwise the configuration would be saved with the precision of the empty model.
    return model.to(config.dtype)


def refused_by_llava(config: AlignGPTConfig) -> str | None:
    """What the model does that `LlavaForConditionalGeneration` does not; None if it can compute the same."""
    if config.image_scales:
        return f"the model reads each image at several sizes (image_scales: {config.image_scales})"
    if config.merge_image_tokens > 1:
        side = config.merge_image_tokens
        return f"the model merges {side} × {side} patches into one image token (merge_image_tokens: {side})"
    if config.vision_register_tokens:
        return f"the vision tower has {config.vision_register_tokens} register tokens, which are to be dropped"
    if config.lm_head_bias:
        return "the language model's output layer has a bias"
    text = config.get_text_config()
    for name in LOGIT_SETTINGS:
        if (value := getattr(text, name, None)) not in (None, 0, 1):
            return f"the language model changes its logits ({name}: {value})"
    if getattr(text, "hidden_size_per_layer_input", None):
        return f"the language model {text.model_type} looks up embeddings in each layer"
    return None


def refused_by_vllm(config: LlavaConfig, image_side: int | None, *, uses_cache: bool) -> str | None:
    """Why vLLM cannot read a plain LLaVA; None if it can, as far as its source code tells.

    Args:
        config: that of `plain_model`.
        image_side: side in pixels of the images that the model reads, None if unknown.
        uses_cache: whether the language model gives the same answers with a cache.
    """
    vision = config.vision_config
    if vision.model_type not in VLLM_TOWERS:
        return f"its LLaVA reads CLIP and SigLIP towers, not {vision.model_type}"
    if config.text_config.model_type not in VLLM_LANGUAGE_MODELS:
        return f"its LLaVA was not looked at with the language model {config.text_config.model_type}"
    if not isinstance(config.vision_feature_layer, int):
        return f"its LLaVA reads one layer of the vision tower, not {config.vision_feature_layer}"
    if vision.image_size != image_side:
        return f"its {vision.model_type} reads images of {vision.image_size} px, not {image_side}"
    if not uses_cache:
        return f"the language model {config.text_config.model_type} answers differently with a cache"
    return None
