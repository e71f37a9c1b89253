"""Published backbones whose sizes are known without their files, so that a recipe can be planned without a network.

The sizes are those in the `config.json` of each on the Hugging Face hub.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

CHARACTERS_PER_TOKEN = 3
"""Assumed length of a token of ASCII text; English text has about four. Any other character counts as one token."""

Known = tuple[str, dict[str, Any]]
"""The name of a configuration class in transformers, and the settings that differ from its defaults."""


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, **more: Any) -> Known:
    return "LlamaConfig", _text(hidden, inner, layers, heads, kv_heads, **more)


def _qwen(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, **more: Any) -> Known:
    # As a Llama with biases, which has one bias per layer more: transformers replaces the stand-in's tokenizer if the
    # configuration is Qwen's.
    sizes = {"vocab_size": 151_936, "tie_word_embeddings": True, "attention_bias": True}
    return _llama(hidden, inner, layers, heads, kv_heads, max_position_embeddings=32_768, **sizes | more)


def _text(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **more,
    }


_SMOL = {"vocab_size": 49_152, "max_position_embeddings": 8192, "tie_word_embeddings": True}
_LLAMA_3 = _llama(4096, 14_336, 32, 32, 8, vocab_size=128_256, max_position_embeddings=8192)

LANGUAGE_MODELS: Mapping[str, Known] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _llama(576, 1536, 30, 9, 3, **_SMOL),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _llama(960, 2560, 32, 15, 5, **_SMOL),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _llama(2048, 8192, 24, 32, 32, **_SMOL),
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen(896, 4864, 24, 14, 2),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen(1536, 8960, 28, 12, 2),
    "Qwen/Qwen2.5-3B-Instruct": _qwen(2048, 11_008, 36, 16, 2),
    "Qwen/Qwen2.5-7B-Instruct": _qwen(3584, 18_944, 28, 28, 4, vocab_size=152_064, tie_word_embeddings=False),
    "lmsys/vicuna-7b-v1.5": _llama(4096, 11_008, 32, 32, 32, max_position_embeddings=4096),
    "lmsys/vicuna-13b-v1.5": _llama(5120, 13_824, 40, 40, 40, max_position_embeddings=4096),
    "meta-llama/Meta-Llama-3-8B": _LLAMA_3,
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA_3,
    "mistralai/Mistral-7B-Instruct-v0.2": (
        "MistralConfig",
        _text(4096, 14_336, 32, 32, 8, max_position_embeddings=32_768, sliding_window=None),
    ),
    "microsoft/phi-2": ("PhiConfig", _text(2560, 10_240, 32, 32, 32, vocab_size=51_200, max_position_embeddings=2048)),
    "google/gemma-7b": ("GemmaConfig", {"head_dim": 256}),
}
"""Causal language models."""


def _tower(kind: str, size: int, patch: int, hidden: int, inner: int, layers: int, heads: int, **more: Any) -> Known:
    sizes = {"image_size": size, "patch_size": patch, "hidden_size": hidden, "intermediate_size": inner}
    return kind, sizes | {"num_hidden_layers": layers, "num_attention_heads": heads} | more


VISION_TOWERS: Mapping[str, Known] = {
    "openai/clip-vit-base-patch32": _tower("CLIPVisionConfig", 224, 32, 768, 3072, 12, 12),
    "openai/clip-vit-base-patch16": _tower("CLIPVisionConfig", 224, 16, 768, 3072, 12, 12),
    "openai/clip-vit-large-patch14": _tower("CLIPVisionConfig", 224, 14, 1024, 4096, 24, 16, projection_dim=768),
    "openai/clip-vit-large-patch14-336": _tower("CLIPVisionConfig", 336, 14, 1024, 4096, 24, 16, projection_dim=768),
    "google/siglip-base-patch16-224": _tower("SiglipVisionConfig", 224, 16, 768, 3072, 12, 12),
    "google/siglip-so400m-patch14-384": _tower("SiglipVisionConfig", 384, 14, 1152, 4304, 27, 16),
}
"""Vision towers."""


def near_name(name: str, known: Mapping[str, Known]) -> str | None:
    """The listed name closest in spelling to `name`, with or without its owner; None if none is close."""
    spelt = {one.lower(): one for one in known} | {one.partition("/")[2].lower(): one for one in known}
    return next((spelt[one] for one in difflib.get_close_matches(name.lower(), spelt, n=1, cutoff=0.75)), None)


def write_stand_in(folder: Path, name: str) -> Path:
    """Write a folder with the configuration of a listed backbone, without weights, for `training.dry_run.plan`.

    A language model gets a tokenizer that cuts text as `CHARACTERS_PER_TOKEN` says, a vision tower its image processor.

    Args:
        folder: a new folder.
        name: a key of `LANGUAGE_MODELS` or `VISION_TOWERS`.
    """
    if name in LANGUAGE_MODELS:
        kind, settings = LANGUAGE_MODELS[name]
        getattr(transformers, kind)(**settings).save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
        return folder
    kind, settings = VISION_TOWERS[name]
    getattr(transformers, kind)(**settings).save_pretrained(folder)
    size = settings["image_size"]
    side = {"height": size, "width": size}
    if kind == "SiglipVisionConfig":
        SiglipImageProcessorPil(size=side).save_pretrained(folder)
    else:
        CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=side).save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    pieces = Regex(f"[ -~]{{1,{CHARACTERS_PER_TOKEN}}}|.|\\n")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
