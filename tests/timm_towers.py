"""Tiny random vision towers of timm, as checkpoint folders of the form that timm publishes."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from tower_families import PATCH, SIDE

SIZES: dict[str, Any] = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 32, "depth": 3, "num_heads": 2}


class TimmTower(NamedTuple):
    """An architecture of timm, and its number of tokens before the patches."""

    architecture: str
    leading: int


TIMM_TOWERS = {
    "Perception Encoder (core)": TimmTower("vit_pe_core_tiny_patch16_384", 1),
    "Perception Encoder (spatial)": TimmTower("vit_pe_spatial_tiny_patch16_512", 1),
    "EVA-02": TimmTower("eva02_tiny_patch14_224", 1),
    "ViT": TimmTower("vit_tiny_patch16_224", 1),
    "SigLIP": TimmTower("vit_so400m_patch14_siglip_224", 0),
    "DINOv2 with registers": TimmTower("vit_small_patch14_reg4_dinov2", 5),
}
"""The families of timm that are tried; `tests/model/test_timm_tower.py` tries them where timm is installed."""

PREPROCESSING = {
    "input_size": [3, SIDE, SIDE],
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bicubic",
    "crop_pct": 0.9,
}


def save_timm_tower(folder: Path, architecture: str) -> Any:
    """Save a tiny random tower with the head that timm's checkpoints have; returns the network."""
    import timm

    torch.manual_seed(2)
    network = timm.create_model(architecture, pretrained=False, num_classes=5, **SIZES)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / "model.safetensors"
    )
    config = {"architecture": architecture, "num_classes": 5, "model_args": SIZES, "pretrained_cfg": PREPROCESSING}
    (folder / "config.json").write_text(json.dumps(config))
    return network.eval()
