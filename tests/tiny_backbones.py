"""Backbones that differ from the usual in what they compute or how they are stored: tiny, random, as folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_models import IMAGE_SIZE, TEXT, VISION, build_tokenizer
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SLIDES = ["sliding_attention", "full_attention"]
PER_LAYER = {"head_dim": 8, "hidden_size_per_layer_input": 8, "layer_types": SLIDES, "num_kv_shared_layers": 0}

# name: model type, what differs from TEXT
LANGUAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "mamba": ("mamba", {"state_size": 8}),
    "falcon_mamba": ("falcon_mamba", {"state_size": 8}),
    "falcon": ("falcon", {"ffn_hidden_size": 48}),
    "falcon_grouped": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 48}),
    "falcon_alibi": ("falcon", {"alibi": True, "ffn_hidden_size": 48}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "minimax": (
        "minimax",
        {"head_dim": 8, "num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "zaya": ("zaya", {"head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512}),
    "gpt_neo": (
        "gpt_neo",
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 40, "num_heads": 4},
    ),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "gpt1": ("openai-gpt", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "rwkv": ("rwkv", {"attention_hidden_size": 32, "context_length": 512}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 64, "head_dim": 8},
    ),
    "phi": ("phi", {"num_key_value_heads": 4}),
    "jamba": (
        "jamba",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_dt_rank": 4,
            "num_experts": 2,
        },
    ),
    "moshi": ("moshi", {"head_dim": 8, "ffn_dim": 48}),
    "xlstm": ("xlstm", {"num_heads": 4, "num_blocks": 2}),
    "deepseek_v32": (
        "deepseek_v32",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "index_head_dim": 8,
            "index_n_heads": 2,
            "index_topk": 40,
        },
    ),
    "exaone4": ("exaone4", {"sliding_window": 200, "sliding_window_pattern": 2, "layer_types": SLIDES}),
    "gemma3n": ("gemma3n_text", PER_LAYER | {"laurel_rank": 4, "altup_num_inputs": 2}),
    "gemma4": ("gemma4_text", PER_LAYER | {"global_head_dim": 8, "num_global_key_value_heads": 2}),
}  # fmt: skip


def save_language_model(folder: Path, name: str, **changes: Any) -> PreTrainedModel:
    """Save a language model of the given name with its tokenizer; no parameter of it is zero or one by design."""
    kind, settings = LANGUAGES[name]
    tokenizer = build_tokenizer("llama")
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    sizes = {"vocab_size": len(tokenizer), "vocab_size_per_layer_input": len(tokenizer)}
    dropout = {key: 0.0 for key in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    config = CONFIG_MAPPING[kind](**{**TEXT, **sizes, **special, **dropout, **settings, **changes})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    _disturb(model, 0.02)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def save_larger_model(folder: Path, name: str) -> PreTrainedModel:
    """Save a model that has a vision tower among other parts, with an image processor; returns that tower."""
    small = {**TEXT, "num_hidden_layers": 1, "vocab_size": 20, "head_dim": 8}
    small |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    language = {"LLaVA": "llama", "LLaVA-OneVision": "qwen2", "PaliGemma": "gemma", "Idefics3": "llama"}
    if name in language:
        small["model_type"] = language[name]
    parts: dict[str, Callable[[], PretrainedConfig]] = {
        "LLaVA": lambda: _larger("LlavaConfig", "CLIPVisionConfig", small),
        "LLaVA-OneVision": lambda: _larger("LlavaOnevisionConfig", "SiglipVisionConfig", small),
        "PaliGemma": lambda: _larger("PaliGemmaConfig", "SiglipVisionConfig", small),
        "Gemma 3": lambda: _larger("Gemma3Config", "SiglipVisionConfig", small, mm_tokens_per_image=4),
        "Idefics3": lambda: _larger("Idefics3Config", "Idefics3VisionConfig", small),
        "Qwen2.5-VL": lambda: _qwen(small),
        "AIMv2": lambda: _larger("Aimv2Config", "Aimv2VisionConfig", small),
    }
    config: Any = parts[name]()
    kind = transformers.AutoModel if name == "AIMv2" else transformers.AutoModelForImageTextToText
    torch.manual_seed(2)
    model = kind.from_config(config)
    _disturb(model, 0.1)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(folder)
    return next(
        part for part in model.modules() if getattr(part, "config", None) is not None and _is_tower(part)
    ).eval()


def _larger(name: str, vision: str, text: dict[str, Any], **more: Any) -> PretrainedConfig:
    tower = getattr(transformers, vision)(**VISION)
    config: PretrainedConfig = getattr(transformers, name)(vision_config=tower.to_dict(), text_config=text, **more)
    return config


def _qwen(text: dict[str, Any]) -> PretrainedConfig:
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config: PretrainedConfig = transformers.Qwen2_5_VLConfig(
        vision_config={**vision, "fullatt_block_indexes": [1]}, text_config={**text, "rope_parameters": rope}
    )
    return config


def _is_tower(part: Any) -> bool:
    return isinstance(part, PreTrainedModel) and part.base_model_prefix != "" and "Vision" in type(part.config).__name__


def _disturb(model: PreTrainedModel, by: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
