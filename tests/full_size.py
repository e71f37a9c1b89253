"""Backbones of the published recipes at their full size, as folders that have configurations and no weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny_models import build_tokenizer
from transformers import PretrainedConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

_LLAMA_3 = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
LANGUAGE_MODELS: dict[str, Callable[[], PretrainedConfig]] = {
    "lmsys/vicuna-7b-v1.5": lambda: transformers.LlamaConfig(max_position_embeddings=4096),
    "lmsys/vicuna-13b-v1.5": lambda: transformers.LlamaConfig(
        hidden_size=5120, intermediate_size=13_824, num_hidden_layers=40, num_attention_heads=40
    ),
    "meta-llama/Meta-Llama-3-8B": lambda: transformers.LlamaConfig(**_LLAMA_3),
    "meta-llama/Meta-Llama-3-8B-Instruct": lambda: transformers.LlamaConfig(**_LLAMA_3),
    "microsoft/phi-2": lambda: transformers.PhiConfig(
        vocab_size=51_200, hidden_size=2560, intermediate_size=10_240, num_hidden_layers=32, num_attention_heads=32
    ),
    "google/gemma-7b": lambda: transformers.GemmaConfig(head_dim=256),
    "mistralai/Mistral-7B-Instruct-v0.2": lambda: transformers.MistralConfig(sliding_window=None),
    "HuggingFaceTB/SmolLM2-135M-Instruct": lambda: transformers.LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "Qwen/Qwen2.5-1.5B-Instruct": lambda: transformers.Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
}
VISION_TOWERS: dict[str, Callable[[], PretrainedConfig]] = {
    "openai/clip-vit-large-patch14-336": lambda: transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    ),
    "openai/clip-vit-base-patch32": lambda: transformers.CLIPVisionConfig(image_size=224, patch_size=32),
    "google/siglip-base-patch16-224": lambda: transformers.SiglipVisionConfig(image_size=224, patch_size=16),
    "google/siglip-so400m-patch14-384": lambda: transformers.SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    ),
}


@pytest.fixture(scope="session")
def full_size_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a published backbone, by its hub name: configuration, tokenizer or image processor, no weights."""
    root = tmp_path_factory.mktemp("full_size")

    def make(name: str) -> Path:
        folder = root / name
        if folder.exists():
            return folder
        if name in LANGUAGE_MODELS:
            LANGUAGE_MODELS[name]().save_pretrained(folder)
            # A few words, with a conversation format as instruction-tuned models have.
            build_tokenizer("chatml").save_pretrained(folder)
            return folder
        config: Any = VISION_TOWERS[name]()
        config.save_pretrained(folder)
        side = {"height": config.image_size, "width": config.image_size}
        if config.model_type.startswith("siglip"):
            SiglipImageProcessorPil(size=side).save_pretrained(folder)
        else:
            CLIPImageProcessorPil(size={"shortest_edge": config.image_size}, crop_size=side).save_pretrained(folder)
        return folder

    return make
