"""A tiny random language model of every causal family of transformers, as a folder with a tokenizer."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tiny_models import build_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SIZES: dict[str, Any] = {
    # Sizes of every kind of layer; a configuration gets those it has a field for.
    **{"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    **{"intermediate_size": 48, "shared_intermediate_size": 16, "intermediate_size_mlp": 48, "ffn_dim": 48},
    **{"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512, "n_inner": 48, "word_embed_proj_dim": 32},
    **{"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 512, "num_heads": 4},
    **{"max_position_embeddings": 512, "initializer_range": 0.3, "query_pre_attn_scalar": 8},
    # Experts.
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "moe_k": 2},
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    # Latent, linear and indexed attention. Published models select 2048 tokens, more than most samples have.
    **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "qk_head_dim": 16},
    **{"v_head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8},
    **{"linear_value_head_dim": 8, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 512},
    # States.
    **{"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1},
    **{"mamba_chunk_size": 16, "mamba_expand": 2, "mamba_d_conv": 4, "state_size": 8, "n_groups": 1},
    **{"chunk_size": 16, "expand": 2, "conv_L_cache": 3},
    # Embeddings in each layer, and layers of two kinds.
    **{"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2},
    **{"num_global_key_value_heads": 2, "global_head_dim": 8},
}

WINDOW = 12
"""Tokens that layers with a window attend to: fewer than a sample has."""


@dataclass(frozen=True)
class Language:
    """A family of language models.

    Attributes:
        kind: transformers' `model_type`.
        settings: what differs from `SIZES`.
        tokenizer: see `build_tokenizer`.
        within: `model_type` of the multimodal model that it is stored in; empty if it is stored alone.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "llama"
    within: str = ""


HALF = {"layer_types": ["linear_attention", "full_attention"] * 2}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2}
CONVOLUTION = {"layer_types": ["conv", "full_attention"] * 2}
AS_MANY_KEYS = {"num_key_value_heads": 4}
NO_PADDING = {"pad_token_id": 0}

PLAIN = [
    "llama",
    "mistral",
    "ministral3",
    "mixtral",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "phi",
    "gemma",
    "gemma2",
    "vaultgemma",
    "llama4_text",
    "olmo",
    "olmo2",
    "olmoe",
    "flex_olmo",
    "smollm3",
    "granitemoe",
    "granitemoeshared",
    "gpt_oss",
    "mamba",
    "falcon_mamba",
    "nemotron",
    "nemotron_h",
    "glm",
    "glm4",
    "glm4_moe",
    "starcoder2",
    "gpt2",
    "gpt_neox",
    "gpt_bigcode",
    "bloom",
    "falcon",
    "stablelm",
    "exaone_moe",
    "ernie4_5",
    "ernie4_5_moe",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "minimax_m2",
    "persimmon",
    "xglm",
    "biogpt",
    "modernbert-decoder",
    "jetmoe",
    "helium",
    "seed_oss",
    "arcee",
    "apertus",
    "bitnet",
    "diffllama",
    "doge",
    "nanochat",
    "afmoe",
    "hrm_text",
    "jais2",
    "solar_open",
    "openai-gpt",
    "ctrl",
    "cwm",
    "moshi",
    "xlstm",
    "deepseek_v4",
]
CHANGED: dict[str, dict[str, Any]] = {
    "phi3": NO_PADDING,
    "phimoe": NO_PADDING | {"router_jitter_noise": 0.0, "input_jitter_noise": 0.0},
    "opt": NO_PADDING | {"do_layer_norm_before": True},
    "gemma3_text": SLIDING,
    "gemma3n_text": SLIDING | {"activation_sparsity_pattern": [0.0] * 4},
    "gemma4_text": SLIDING,
    "olmo3": SLIDING,
    "cohere2": SLIDING,
    "exaone4": SLIDING,
    "ministral": SLIDING,
    "olmo_hybrid": HALF,
    "minimax": HALF,
    "granitemoehybrid": HALF,
    "lfm2": CONVOLUTION,
    "lfm2_moe": CONVOLUTION | {"num_dense_layers": 1},
    "deepseek_v2": AS_MANY_KEYS,
    "deepseek_v3": AS_MANY_KEYS,
    "deepseek_v32": AS_MANY_KEYS,
    "glm4_moe_lite": AS_MANY_KEYS,
    "glm_moe_dsa": AS_MANY_KEYS,
    "youtu": AS_MANY_KEYS,
    "minicpm3": AS_MANY_KEYS,
    "longcat_flash": AS_MANY_KEYS | {"expert_ffn_hidden_size": 16, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 16, "expand": 2},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "lm_head_multiplier": 0.5},
    "bamba": {"attn_layer_indices": [1, 3], "mamba_d_head": 16, "mamba_n_heads": 4},
    "jamba": {
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
        "mamba_dt_rank": 4,
    },
    "zamba2": {
        **{"layers_block_type": ["mamba", "hybrid"] * 2, "mamba_headdim": 8, "mamba_d_state": 8, "n_mamba_heads": 8},
        **{"mamba_ngroups": 1, "attention_head_dim": 16, "attention_hidden_size": 64},
    },
    "kimi_linear": AS_MANY_KEYS
    | {
        "linear_attn_config": {
            **{"head_dim": 8, "num_heads": 4, "short_conv_kernel_size": 4},
            **{"kda_layers": [1, 2, 3], "full_attn_layers": [4]},
        }
    },
    "rwkv": {"attention_hidden_size": 32, "context_length": 512},
    "recurrent_gemma": {"attention_window_size": WINDOW, "lru_width": 32, "num_hidden_layers": 3},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "window_size": WINDOW},
    "mpt": {},
    "dots1": {"n_shared_experts": 1},
    "zaya": {"num_experts_per_tok": 1},
    "gemma4_unified_text": SLIDING,
    "lfm3": CONVOLUTION,
    "bailing_hybrid": AS_MANY_KEYS | HALF,
    "granite_swa": {},
    "laguna": {},
    "mimo_v2_flash": {},
    "internlm3": {},
    "hyperclovax": {},
    "cohere2_moe": {},
    "qwen4_exp_text": {
        **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16},
        **{"indexer_compress_ratio": 4, "ngram_vocab_size_base": 100, "hc_lowrank": 8, "split_ngram_parts": 1},
    },
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 0.25},
}

LANGUAGES: dict[str, Language] = {
    **{kind: Language(kind) for kind in PLAIN},
    **{kind: Language(kind, settings) for kind, settings in CHANGED.items()},
    "qwen2": Language("qwen2", {"tie_word_embeddings": True}, "chatml"),
    "qwen2, window": Language(
        "qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}, "chatml"
    ),
    "llama, tied": Language("llama", {"tie_word_embeddings": True}, "chatml"),
    "mistral, no window": Language("mistral", {"sliding_window": None}),
    "falcon, ALiBi": Language("falcon", {"alibi": True}),
    "falcon, new layers": Language("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "opt, projected embeddings": Language("opt", NO_PADDING | {"word_embed_proj_dim": 16}),
    "llama4_text, long chunks": Language("llama4_text", {"attention_chunk_size": 512}),
    "gemma4_text, no embeddings in layers": Language("gemma4_text", SLIDING | {"hidden_size_per_layer_input": 0}),
    "llama in LLaVA": Language("llama", within="llava"),
    "qwen2 in LLaVA-OneVision": Language("qwen2", {"tie_word_embeddings": False}, "chatml", within="llava_onevision"),
    "gemma3_text in Gemma 3": Language("gemma3_text", SLIDING, within="gemma3"),
    "gemma4_text in Gemma 4": Language("gemma4_text", SLIDING, within="gemma4"),
    "llama4_text in Llama 4": Language("llama4_text", within="llama4"),
    "qwen3_5_text in Qwen 3.5": Language("qwen3_5_text", within="qwen3_5"),
    "mistral in Mistral 3": Language("mistral", within="mistral3"),
    "qwen2_5_vl_text in Qwen2.5-VL": Language("qwen2_5_vl_text", within="qwen2_5_vl"),
    "qwen3_vl_text in Qwen3-VL": Language("qwen3_vl_text", within="qwen3_vl"),
}

VISION = {
    **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "depth": 1, "num_attention_heads": 2},
    **{"num_heads": 2, "image_size": 32, "patch_size": 8, "out_hidden_size": 32, "head_dim": 16},
    **{"num_key_value_heads": 2, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    **{"deepstack_visual_indexes": [0], "fullatt_block_indexes": [0], "num_position_embeddings": 16},
}


def fields_of(kind: type[PretrainedConfig]) -> dict[str, Any]:
    """The settings of a configuration class and their defaults; None for one without a default."""
    fields = {one.name: None if one.default is dataclasses.MISSING else one.default for one in dataclasses.fields(kind)}
    return {name: None for name in getattr(kind, "attribute_map", None) or {}} | fields


def tiny_language(kind: str, vocabulary: int, settings: dict[str, Any]) -> PretrainedConfig:
    """A configuration of a model type with `settings`, and `SIZES` where it has such a field."""
    fields = fields_of(CONFIG_MAPPING[kind])
    chosen = {name: value for name, value in SIZES.items() if name in fields}
    chosen |= {name: 0.0 for name, value in fields.items() if "drop" in name and isinstance(value, int | float)}
    chosen |= {name: vocabulary for name in ("vocab_size", "vocab_size_per_layer_input") if name in fields}
    for name in ("sliding_window", "attention_chunk_size"):
        if isinstance(fields.get(name), int):
            chosen[name] = WINDOW
    if isinstance(padding := fields.get("pad_token_id"), int) and padding >= vocabulary:
        chosen["pad_token_id"] = 0
    return CONFIG_MAPPING[kind](**(chosen | settings))


def save_language(folder: Path, language: Language) -> None:
    """Save a tiny random model with its tokenizer; no parameter of it is zero or one by design."""
    tokenizer = build_tokenizer(language.tokenizer)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = tiny_language(language.kind, len(tokenizer), special | language.settings)
    auto: Any = AutoModelForCausalLM
    if language.within:
        whole = CONFIG_MAPPING[language.within]
        vision: Any = whole.sub_configs["vision_config"]
        vision = vision if vision.__name__ != "AutoConfig" else CONFIG_MAPPING["siglip_vision_model"]
        known = fields_of(vision)
        small = {name: value for name, value in VISION.items() if name in known}
        # If it is not stated, the larger model's own default decides, which may differ from its text part's.
        tied = {name: value for name, value in language.settings.items() if name == "tie_word_embeddings"}
        config = whole(text_config=config.to_dict(), vision_config=vision(**small).to_dict(), **tied)
        auto = AutoModelForImageTextToText
    torch.manual_seed(1)
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
