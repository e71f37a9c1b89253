"""Vision towers of timm: assembled, trained, saved and cached like others; without timm, a sentence."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_matrix import check_tower_works
from language_families import LANGUAGES, save_language
from PIL import Image
from timm_towers import PREPROCESSING, SIZES, TIMM_TOWERS, save_timm_tower
from tower_families import PATCHES, SIDE

from aligngpt.model import modeling_timm_tower
from aligngpt.model.assembling import assemble
from aligngpt.model.backbones import BackboneError
from aligngpt.model.configuration_timm_tower import TimmTowerConfig
from aligngpt.model.modeling_timm_tower import timm_preprocessing
from aligngpt.model.vision_towers import load_vision_tower
from aligngpt.training.feed.feature_cache import FeatureCache, fingerprint_of_tower


def _imports_timm() -> bool:
    try:
        importlib.import_module("timm")
    # A torchvision for another torch raises RuntimeError.
    except (ImportError, RuntimeError):
        return False
    return True


needs_timm = pytest.mark.skipif(not _imports_timm(), reason="timm is not installed, or not with a matching torchvision")


def write_config(folder: Path, **changes: Any) -> Path:
    content = {"architecture": "vit_tiny_patch16_224", "model_args": SIZES, "pretrained_cfg": PREPROCESSING}
    (folder / "config.json").write_text(json.dumps(content | changes))
    return folder


@needs_timm
@pytest.mark.medium
@pytest.mark.parametrize("name", TIMM_TOWERS)
def test_a_tower_of_timm_works_as_others_do(name: str, tmp_path: Path) -> None:
    save_timm_tower(tmp_path / "tower", TIMM_TOWERS[name].architecture)
    save_language(tmp_path / "llama", LANGUAGES["llama"])
    model, processor = assemble(tmp_path / "tower", tmp_path / "llama", chat_template="plain")
    check_tower_works(model, processor, tmp_path)
    assert model.config.leading_tokens == TIMM_TOWERS[name].leading


@needs_timm
def test_cached_features_are_those_computed(tmp_path: Path) -> None:
    save_timm_tower(tmp_path / "tower", TIMM_TOWERS["EVA-02"].architecture)
    save_language(tmp_path / "llama", LANGUAGES["llama"])
    model, _ = assemble(tmp_path / "tower", tmp_path / "llama", chat_template="plain")
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    cache = FeatureCache(tmp_path / "cache", fingerprint_of_tower(model, {}), (PATCHES, 32), torch.float32)
    with torch.no_grad():
        expected = torch.cat([model.model.tower_features(one) for one in pixels.split(1)])
    keys = [cache.key(bytes([number])) for number in range(2)]
    batch = {"feature_keys": keys, "pixel_values": pixels}
    assert torch.equal(cache.complete(model, batch, in_bfloat16=False)["vision_features"], expected)
    stored = [cache.read(key) for key in keys]
    assert all(one is not None and torch.equal(one, two) for one, two in zip(stored, expected, strict=True))


@needs_timm
@pytest.mark.parametrize("name", TIMM_TOWERS)
def test_its_features_are_those_that_timm_computes(name: str, tmp_path: Path) -> None:
    before = TIMM_TOWERS[name].leading
    network = save_timm_tower(tmp_path, TIMM_TOWERS[name].architecture)
    tower = load_vision_tower(tmp_path)
    assert (tower.select_strategy == "default") + tower.register_tokens == before
    assert tower.image_tokens == PATCHES
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states = tower.model(pixels, output_hidden_states=True).hidden_states
        _, expected = network.forward_intermediates(pixels, output_fmt="NLC")
    assert len(states) == 4
    for found, one in zip(states[1:], expected, strict=True):
        assert torch.equal(found[:, before:], one)


@needs_timm
def test_images_are_scaled_and_normalised_as_its_configuration_says(tmp_path: Path) -> None:
    save_timm_tower(tmp_path, TIMM_TOWERS["EVA-02"].architecture)
    processor = load_vision_tower(tmp_path).image_processor
    assert [*processor.image_mean, *processor.image_std] == [0.4, 0.5, 0.6, 0.2, 0.3, 0.4]
    assert processor.resample == 3
    white = processor(Image.new("RGB", (50, 20), "white"), return_tensors="np")["pixel_values"][0]
    assert white.shape == (3, SIDE, SIDE)
    assert np.allclose(white[:, SIDE // 2, SIDE // 2], (1 - np.array([0.4, 0.5, 0.6])) / [0.2, 0.3, 0.4], atol=1e-5)


@needs_timm
def test_a_model_is_planned_from_its_configuration_alone(tmp_path: Path) -> None:
    save_timm_tower(tmp_path, TIMM_TOWERS["Perception Encoder (core)"].architecture)
    (tmp_path / "model.safetensors").unlink()
    tower = load_vision_tower(tmp_path, weights=False)
    assert {one.device.type for one in tower.model.parameters()} == {"meta"}
    assert tower.image_tokens == PATCHES
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_vision_tower(tmp_path)


@needs_timm
def test_missing_weights_are_not_left_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_timm_tower(tmp_path, TIMM_TOWERS["ViT"].architecture)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["blocks.1.attn.qkv.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match=r"no weights for timm_model\.blocks\.1\.attn\.qkv\.weight"):
        load_vision_tower(tmp_path)


@needs_timm
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "no_such_tower"}, "cannot create no_such_tower"),
        ({"model_args": {"widht": 3}}, "cannot create vit_tiny_patch16_224"),
        ({"architecture": "resnet18", "model_args": {}}, "is not a vision transformer with blocks and square patches"),
        ({"pretrained_cfg": PREPROCESSING | {"input_size": [3, 32, 48]}}, "expected square images of 3 channels"),
        ({"pretrained_cfg": {}}, "`input_size` is None"),
    ],
)
def test_what_is_no_usable_tower_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BackboneError, match=said):
        load_vision_tower(write_config(tmp_path, **changes))


@pytest.mark.parametrize("name", ["mean", "std", "interpolation"])
def test_a_setting_of_the_images_that_is_missing_is_named(name: str) -> None:
    settings = {key: value for key, value in PREPROCESSING.items() if key != name}
    with pytest.raises(BackboneError, match="needs mean, std and interpolation"):
        timm_preprocessing({"pretrained_cfg": settings}, "here")


def test_without_timm_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_timm_tower, "is_timm_available", lambda: False)
    with pytest.raises(BackboneError, match=r"is a vision tower of timm.*pip install 'aligngpt\[timm\]'"):
        load_vision_tower(write_config(tmp_path))
    with pytest.raises(BackboneError, match="which is not installed"):
        modeling_timm_tower.TimmTowerModel(TimmTowerConfig(architecture="vit_tiny_patch16_224"))
