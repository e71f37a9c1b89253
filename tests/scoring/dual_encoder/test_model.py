"""The dual encoder against its towers, run separately."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import VISION
from torch import Tensor
from transformers import AutoModel, BertModel, Dinov2Model

from aligngpt.errors import AlignGPTError
from aligngpt.model.whole_weights import load_whole
from aligngpt.scoring.dual_encoder.model import DualEncoder, DualEncoderConfig, DualEncoderError, assemble_dual_encoder
from aligngpt.scoring.encoders import PairScorer, load_image_processor, load_tokenizer

LAYERS = 3


@pytest.fixture(scope="session")
def image_tower(tower_folder: Callable[[str], Path]) -> Path:
    return tower_folder("dinov2")


@pytest.fixture
def build(image_tower: Path, text_tower: Path) -> Callable[..., DualEncoder]:
    """Builds a dual encoder whose maps always have the same random values."""

    def make(**options: Any) -> DualEncoder:
        torch.manual_seed(6)
        model = assemble_dual_encoder(image_tower, text_tower, **{"projection_dim": 8} | options)
        for part in (model.visual_projection, model.text_projection):
            torch.nn.init.normal_(part.weight)
        return model

    return make


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(5, 3, 32, 32)


@pytest.fixture
def texts(text_tower: Path, captions: list[str]) -> dict[str, Tensor]:
    return dict(load_tokenizer(text_tower)(captions, padding=True, return_tensors="pt", return_token_type_ids=False))


def state_after(folder: Path, pixels: Tensor, layers: int) -> Tensor:
    """The tokens of an image after a tower's first layers: `(images, tokens, hidden)`."""
    tower = Dinov2Model.from_pretrained(folder)
    hidden = tower.embeddings(pixels)
    for layer in tower.encoder.layer[:layers]:
        hidden = layer(hidden)
    return hidden


@pytest.mark.parametrize("layers", [1, 2, 3, None])
@torch.no_grad()
def test_an_image_is_its_state_after_the_layers_kept(
    build: Callable[..., DualEncoder], image_tower: Path, pixels: Tensor, layers: int | None
) -> None:
    hidden = state_after(image_tower, pixels, LAYERS if layers is None else layers)
    by_class = build(vision_layers=layers, image_pooling="class")
    torch.testing.assert_close(by_class.pooled_image(pixels), hidden[:, 0])
    by_mean = build(vision_layers=layers, image_pooling="mean")
    torch.testing.assert_close(by_mean.pooled_image(pixels), hidden.mean(dim=1))


@torch.no_grad()
def test_a_text_is_the_mean_of_its_tokens(
    build: Callable[..., DualEncoder], text_tower: Path, texts: dict[str, Tensor]
) -> None:
    tower = BertModel.from_pretrained(text_tower)
    expected = []
    for ids, mask in zip(texts["input_ids"], texts["attention_mask"], strict=True):
        expected.append(tower(input_ids=ids[mask.bool()][None]).last_hidden_state[0].mean(dim=0))
    assert len({int(mask.sum()) for mask in texts["attention_mask"]}) > 1, "texts of different lengths are needed"
    torch.testing.assert_close(build().pooled_text(**texts), torch.stack(expected))


@torch.no_grad()
def test_a_text_without_a_mask_is_all_tokens(build: Callable[..., DualEncoder], texts: dict[str, Tensor]) -> None:
    model, ids = build(), texts["input_ids"]
    assert torch.equal(model.pooled_text(ids), model.pooled_text(ids, torch.ones_like(ids)))
    assert not torch.allclose(model.pooled_text(ids), model.pooled_text(**texts))


@torch.no_grad()
def test_features_are_the_maps_of_what_is_pooled(
    build: Callable[..., DualEncoder], pixels: Tensor, texts: dict[str, Tensor]
) -> None:
    model = build()
    assert model.get_image_features(pixel_values=pixels).shape == (5, 8)
    image = model.pooled_image(pixels) @ model.visual_projection.weight.T
    text = model.pooled_text(**texts) @ model.text_projection.weight.T
    torch.testing.assert_close(model.get_image_features(pixel_values=pixels), image)
    torch.testing.assert_close(model.get_text_features(**texts), text)


@torch.no_grad()
def test_forward_compares_every_image_with_every_text(
    build: Callable[..., DualEncoder], pixels: Tensor, texts: dict[str, Tensor]
) -> None:
    model = build()
    model.logit_scale.fill_(1.5)
    out = model(pixel_values=pixels, **texts)
    image, text = model.get_image_features(pixels), model.get_text_features(**texts)
    cosine = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    torch.testing.assert_close(out.logits_per_image, cosine * torch.tensor(1.5).exp())
    assert torch.equal(out.logits_per_text, out.logits_per_image.T)
    torch.testing.assert_close(out.image_embeds @ out.text_embeds.T, cosine)


@pytest.mark.parametrize("layers", [None, 2])
@pytest.mark.parametrize("pooling", ["class", "mean"])
@torch.no_grad()
def test_a_saved_model_comes_back_to_the_bit(
    build: Callable[..., DualEncoder],
    pixels: Tensor,
    texts: dict[str, Tensor],
    tmp_path: Path,
    layers: int | None,
    pooling: str,
) -> None:
    model = build(vision_layers=layers, image_pooling=pooling)
    model.save_pretrained(tmp_path / "dual")
    back = AutoModel.from_pretrained(tmp_path / "dual")
    assert isinstance(back, DualEncoder)
    assert isinstance(back.config, DualEncoderConfig)
    assert back.config.image_pooling == pooling
    assert back.config.vision_config.num_hidden_layers == (layers or LAYERS)
    before, after = model.state_dict(), back.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(back.get_image_features(pixels), model.get_image_features(pixels))
    assert torch.equal(back.get_text_features(**texts), model.get_text_features(**texts))


def test_what_is_left_out_is_not_saved(build: Callable[..., DualEncoder]) -> None:
    def layer_weights(model: DualEncoder) -> int:
        return sum(part.numel() for name, part in model.vision_model.named_parameters() if ".layer" in name)

    assert layer_weights(build(vision_layers=1)) * LAYERS == layer_weights(build())


def test_no_path_of_a_tower_is_saved(
    build: Callable[..., DualEncoder], image_tower: Path, text_tower: Path, tmp_path: Path
) -> None:
    build(vision_layers=2).save_pretrained(tmp_path / "dual")
    written = (tmp_path / "dual" / "config.json").read_text(encoding="utf-8")
    assert str(image_tower.parent) not in written
    assert str(text_tower.parent) not in written


def test_it_scores_pairs_and_the_pooling_is_in_its_fingerprint(
    build: Callable[..., DualEncoder],
    image_tower: Path,
    text_tower: Path,
    pictures: list[Image.Image],
    captions: list[str],
) -> None:
    scorers = [
        PairScorer(
            build(image_pooling=pooling),
            load_image_processor(image_tower),
            load_tokenizer(text_tower),
            device="cpu",
            dtype="float32",
        )
        for pooling in ("class", "mean")
    ]
    by_class, by_mean = (scorer.score(pictures, captions) for scorer in scorers)
    assert np.ptp(by_class) > 0.1
    assert not np.allclose(by_class, by_mean, atol=1e-3)
    assert scorers[0].fingerprint != scorers[1].fingerprint


@pytest.mark.parametrize("count", [LAYERS + 1, 0, -1])
def test_layers_a_tower_does_not_have_cannot_be_kept(build: Callable[..., DualEncoder], count: int) -> None:
    with pytest.raises(DualEncoderError, match=rf"dinov2 has 3 layers, cannot keep {count}"):
        build(vision_layers=count)


def test_a_missing_or_damaged_tower_is_named(image_tower: Path, text_tower: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(text_tower, tmp_path / "broken"))
    (broken / "config.json").write_text(json.dumps({"model_type": "no such model"}), encoding="utf-8")
    for image, text in [(tmp_path / "nowhere", text_tower), (image_tower, broken)]:
        with pytest.raises(DualEncoderError, match=r"(nowhere|broken).* cannot be loaded"):
            assemble_dual_encoder(image, text)


def test_a_model_of_several_towers_is_no_tower(
    scorer_folder: Callable[[str], Path], image_tower: Path, text_tower: Path
) -> None:
    clip = scorer_folder("clip")
    for image, text in [(clip, text_tower), (image_tower, clip)]:
        with pytest.raises(DualEncoderError, match="clip is a CLIPModel, expected a transformer with a single tower"):
            assemble_dual_encoder(image, text, vision_layers=2)


@pytest.mark.parametrize("name", ["ViTConfig", "CLIPVisionConfig", "SiglipVisionConfig"])
@torch.no_grad()
def test_other_vision_transformers_are_cut_and_come_back_too(
    text_tower: Path, pixels: Tensor, tmp_path: Path, name: str
) -> None:
    whole = AutoModel.from_config(getattr(transformers, name)(**VISION)).eval()
    whole.save_pretrained(tmp_path / "tower")
    states: list[Tensor] = []
    stack = next(module for module in whole.modules() if isinstance(module, torch.nn.ModuleList))
    stack[1].register_forward_hook(lambda *call: states.append(call[-1]))
    whole(pixel_values=pixels)
    model = assemble_dual_encoder(tmp_path / "tower", text_tower, vision_layers=2, image_pooling="mean")
    torch.testing.assert_close(model.pooled_image(pixels), states[0].mean(dim=1))
    model.save_pretrained(tmp_path / "dual")
    back = AutoModel.from_pretrained(tmp_path / "dual")
    assert torch.equal(back.pooled_image(pixels), model.pooled_image(pixels))


def without(folder: Path, to: Path, start: str) -> Path:
    """A copy of a model folder without the tensors whose names begin so."""
    copy = Path(shutil.copytree(folder, to))
    (weights,) = copy.glob("*.safetensors")
    kept = {name: one for name, one in load_file(weights).items() if not name.startswith(start)}
    save_file(kept, weights, {"format": "pt"})
    return copy


def test_of_a_towers_weights_only_the_pooler_may_be_missing(
    image_tower: Path, text_tower: Path, tmp_path: Path
) -> None:
    bare = without(text_tower, tmp_path / "bare", "pooler.")
    assemble_dual_encoder(image_tower, bare)
    with pytest.raises(DualEncoderError, match=r"the tower .*broken has no weights for encoder\.layer\.0"):
        assemble_dual_encoder(image_tower, without(text_tower, tmp_path / "broken", "encoder.layer.0"))
    with pytest.raises(AlignGPTError, match=r"no weights for pooler\.dense\.bias, pooler\.dense\.weight"):
        load_whole(AutoModel, bare, "the tower", AlignGPTError)
