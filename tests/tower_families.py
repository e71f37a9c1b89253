"""A tiny random vision tower of every family of transformers, as a folder with an image processor."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from language_families import fields_of
from transformers import AutoModel, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from aligngpt.model.backbones import network_class

SIDE, PATCH, PATCHES = 32, 8, 16
SQUARE = {"height": SIDE, "width": SIDE}
SIZES: dict[str, Any] = {
    **{
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIDE,
    },
    **{"patch_size": PATCH, "initializer_range": 0.2, "mlp_ratio": 2, "num_channels": 3, "depth": 3, "num_heads": 2},
    **{"embed_dim": 32, "out_hidden_size": 32, "head_dim": 16, "num_key_value_heads": 2},
}
TEXT: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40},
    **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": 64, "head_dim": 16},
    "num_key_value_heads": 2,
}

PROCESSORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "clip": ("clip", "CLIP", {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}),
    "clip, raw": ("clip", "CLIP", {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE, "do_normalize": False}),
    "siglip": ("siglip", "Siglip", {"size": SQUARE}),
    "siglip2": ("siglip2", "Siglip2", {"patch_size": PATCH, "max_num_patches": PATCHES}),
    "bit": ("bit", "Bit", {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}),
    "vit": ("vit", "ViT", {"size": SQUARE}),
    "deit": ("deit", "DeiT", {"size": SQUARE, "crop_size": SQUARE}),
    "beit": ("beit", "Beit", {"size": SQUARE, "crop_size": SQUARE}),
    "pixtral": (
        "pixtral",
        "Pixtral",
        {"size": {"longest_edge": SIDE}, "patch_size": {"height": PATCH, "width": PATCH}},
    ),
    "qwen": ("qwen2_vl", "Qwen2VL", {"patch_size": PATCH}),
    "sam": ("sam", "Sam", {"size": {"longest_edge": SIDE}, "pad_size": SQUARE}),
    "idefics3": (
        "idefics3",
        "Idefics3",
        {"size": {"longest_edge": SIDE}, "max_image_size": {"longest_edge": SIDE}},
    ),
    "convnext": ("convnext", "ConvNext", {"size": {"shortest_edge": SIDE}, "crop_pct": 1.0}),
}


@dataclass(frozen=True)
class Tower:
    """A family of vision towers.

    Attributes:
        config: name of its configuration class.
        processor: its image processor, in `PROCESSORS`.
        settings: what differs from `SIZES`.
        within: name of the configuration class of the larger model it is stored in; empty if it is stored alone.
        text: `model_type` of that model's language model, if it has one of several.
    """

    config: str
    processor: str
    settings: dict[str, Any] = field(default_factory=dict)
    within: str = ""
    text: str = ""


HIERARCHICAL = ("depths", "hidden_sizes")
SWIN = {"image_size": SIDE, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
HIERA = {"image_size": [SIDE, SIDE], "embed_dim": 16, "depths": [1] * 4, "num_heads": [1, 1, 2, 2]}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
WINDOWS = {"output_channels": 16, "num_pos_feats": 8, "window_size": 2, "global_attn_indexes": [2]}
RADIO_TOKENS = {"num_cls_tokens": 1, "num_registers": 3, "summary_idxs": [0], "max_img_size": 64}

TOWERS: dict[str, Tower] = {
    "CLIP": Tower("CLIPVisionConfig", "clip"),
    "CLIP in CLIP": Tower("CLIPVisionConfig", "clip", within="CLIPConfig"),
    "CLIP in LLaVA": Tower("CLIPVisionConfig", "clip", within="LlavaConfig", text="llama"),
    "SigLIP": Tower("SiglipVisionConfig", "siglip"),
    "SigLIP in SigLIP": Tower("SiglipVisionConfig", "siglip", within="SiglipConfig"),
    "SigLIP in LLaVA-OneVision": Tower("SiglipVisionConfig", "siglip", within="LlavaOnevisionConfig", text="qwen2"),
    "SigLIP in PaliGemma": Tower("SiglipVisionConfig", "siglip", within="PaliGemmaConfig", text="gemma"),
    "SigLIP in Gemma 3": Tower("SiglipVisionConfig", "siglip", within="Gemma3Config"),
    "SigLIP 2 NaFlex": Tower("Siglip2VisionConfig", "siglip2", {"num_patches": PATCHES}),
    "SigLIP 2 NaFlex in SigLIP 2": Tower("Siglip2VisionConfig", "siglip2", {"num_patches": PATCHES}, "Siglip2Config"),
    "DINOv2": Tower("Dinov2Config", "bit"),
    "DINOv2 with registers": Tower("Dinov2WithRegistersConfig", "bit", {"num_register_tokens": 4}),
    "DINOv3": Tower("DINOv3ViTConfig", "bit", {"num_register_tokens": 4}),
    "DINOv3 ConvNeXt": Tower("DINOv3ConvNextConfig", "convnext", STAGES),
    "AIMv2": Tower("Aimv2VisionConfig", "clip"),
    "AIMv2, native": Tower("Aimv2VisionConfig", "clip", {"is_native": True}),
    "AIMv2 in AIMv2": Tower("Aimv2VisionConfig", "clip", within="Aimv2Config"),
    "InternViT": Tower("InternVLVisionConfig", "clip"),
    "InternViT in InternVL": Tower("InternVLVisionConfig", "clip", within="InternVLConfig", text="qwen2"),
    "MetaCLIP 2": Tower("MetaClip2VisionConfig", "clip"),
    "MetaCLIP 2 in MetaCLIP 2": Tower("MetaClip2VisionConfig", "clip", within="MetaClip2Config"),
    "AltCLIP in AltCLIP": Tower("AltCLIPVisionConfig", "clip", within="AltCLIPConfig"),
    "Chinese CLIP": Tower("ChineseCLIPVisionConfig", "clip"),
    "Chinese CLIP in Chinese CLIP": Tower("ChineseCLIPVisionConfig", "clip", within="ChineseCLIPConfig"),
    "MLCD": Tower("MLCDVisionConfig", "clip"),
    "RADIO": Tower("RadioConfig", "clip", RADIO_TOKENS),
    "RADIO, three class tokens, pixels not normalised": Tower(
        "RadioConfig", "clip, raw", {"num_cls_tokens": 3, "num_registers": 7, "max_img_size": 64}
    ),
    "Idefics 2": Tower("Idefics2VisionConfig", "siglip"),
    "Idefics 3": Tower("Idefics3VisionConfig", "siglip"),
    "Idefics 3 in Idefics 3": Tower("Idefics3VisionConfig", "idefics3", within="Idefics3Config", text="llama"),
    "SmolVLM": Tower("SmolVLMVisionConfig", "siglip"),
    "ViT": Tower("ViTConfig", "vit"),
    "ViT-MSN": Tower("ViTMSNConfig", "vit"),
    "ViT-MAE": Tower("ViTMAEConfig", "vit"),
    "DeiT": Tower("DeiTConfig", "deit"),
    "BEiT": Tower("BeitConfig", "beit"),
    "data2vec": Tower("Data2VecVisionConfig", "beit"),
    "I-JEPA": Tower("IJepaConfig", "vit"),
    "V-JEPA 2": Tower("VJEPA2Config", "vit", {"crop_size": SIDE}),
    "Pixio": Tower("PixioConfig", "bit"),
    "Sapiens 2": Tower("Sapiens2Config", "vit"),
    "TIPSv2": Tower("Tipsv2VisionConfig", "siglip", {"num_register_tokens": 1}),
    "Qianfan-OCR": Tower("QianfanOCRVisionConfig", "clip"),
    "Granite Docling": Tower("GraniteDoclingVisionConfig", "siglip"),
    "Cohere Compass": Tower("CohereCompassVisionConfig", "siglip"),
    "Muse Glimmer": Tower("MuseGlimmerVisionConfig", "siglip"),
    "LFM3-VL": Tower("Lfm3VlVisionConfig", "siglip2", {"num_patches": PATCHES}),
    "Pixtral": Tower("PixtralVisionConfig", "pixtral"),
    "Qwen2.5-VL": Tower("Qwen2_5_VLVisionConfig", "qwen", {"fullatt_block_indexes": [2], "window_size": 16}),
    "Qwen3-VL": Tower("Qwen3VLVisionConfig", "qwen", {"deepstack_visual_indexes": [1], "num_position_embeddings": 16}),
    "Qwen3.5": Tower("Qwen3_5VisionConfig", "qwen", {"num_position_embeddings": 16}),
    "GLM-4V": Tower("Glm4vVisionConfig", "qwen"),
    "Kimi K2.5 (MoonViT)": Tower("Kimi_K25VisionConfig", "qwen"),
    "VideoLLaMA 3": Tower("VideoLlama3VisionConfig", "siglip"),
    "Gemma 4": Tower("Gemma4VisionConfig", "siglip"),
    "SAM": Tower("SamVisionConfig", "sam", WINDOWS),
    "SAM-HQ": Tower("SamHQVisionConfig", "sam", WINDOWS),
    "Hiera": Tower("HieraConfig", "bit", HIERA),
    "Swin": Tower("SwinConfig", "vit", SWIN),
    "Swin v2": Tower("Swinv2Config", "vit", SWIN),
    "ConvNeXt": Tower("ConvNextConfig", "convnext", STAGES),
}


def tower_config(tower: Tower) -> PretrainedConfig:
    """Its configuration, or that of the larger model it is in: `SIZES` where it has such a field, and its settings."""
    kind = getattr(transformers, tower.config)
    fields = fields_of(kind)
    chosen: dict[str, Any] = {}
    if not set(HIERARCHICAL) & set(tower.settings):
        chosen = {name: value for name, value in SIZES.items() if name in fields}
    chosen |= {name: float(value) for name, value in chosen.items() if isinstance(fields[name], float)}
    chosen |= {name: 0.0 for name, value in fields.items() if "drop" in name and isinstance(value, int | float)}
    config: PretrainedConfig = kind(**(chosen | tower.settings))
    if not tower.within:
        return config
    text = TEXT | ({"model_type": tower.text} if tower.text else {})
    text |= {"project_dim": 16} if tower.within == "AltCLIPConfig" else {}
    more = {"mm_tokens_per_image": 4} if tower.within == "Gemma3Config" else {}
    whole: PretrainedConfig = getattr(transformers, tower.within)(
        vision_config=config.to_dict(), text_config=text, **more
    )
    return whole


def save_tower(folder: Path, tower: Tower) -> PreTrainedModel:
    """Save a tiny random tower, or a larger model that contains it, with an image processor; returns what was saved."""
    config = tower_config(tower)
    network_class(config)
    auto: Callable[..., PreTrainedModel] = AutoModel.from_config
    if tower.text or tower.within == "Gemma3Config":
        auto = AutoModelForImageTextToText.from_config
    torch.manual_seed(2)
    model = auto(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    module, name, settings = PROCESSORS[tower.processor]
    made = import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    getattr(made, f"{name}ImageProcessorPil")(**settings).save_pretrained(folder)
    return model.eval()
