"""Merged image tokens: each holds its square of patches, and everything that counts image tokens counts the merged."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from aligngpt.inference.engine import Engine, Request, Sampling
from aligngpt.model.backbones import BackboneError
from aligngpt.model.foreign.checkpoint_formats import LayoutError
from aligngpt.model.foreign.conversion import to_original
from aligngpt.model.token_merging import merge_tokens, merged_tokens


def test_a_token_holds_the_patches_of_its_square_row_by_row() -> None:
    # The feature of a patch is its number in the 4 × 4 grid, and its negative.
    number = torch.arange(16.0)
    features = torch.stack([number, -number], dim=-1).expand(3, 16, 2)
    merged = merge_tokens(features, 2)
    assert merged.shape == (3, 4, 8)
    assert merged[1, :, ::2].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert torch.equal(merged[..., 1::2], -merged[..., ::2])
    assert merge_tokens(features, 1) is features


@pytest.mark.parametrize(
    ("patches", "merge", "message"),
    [(16, 3, r"merge_image_tokens 3 does not divide a grid of 4 × 4 patches; 2, 4 would fit"), (15, 2, "not a square")],
)
def test_a_grid_that_cannot_be_divided_is_refused(patches: int, merge: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merged_tokens(patches, merge)


@pytest.mark.parametrize("tower", ["clip", "siglip", "dinov2_registers"])
@pytest.mark.parametrize("scales", [None, (32, 64)])
def test_projected_tokens_are_those_of_the_towers_patches(
    assembled: Callable, tower: str, scales: tuple[int, ...] | None
) -> None:
    plain, _ = assembled("llama", tower, image_scales=scales)
    model, _ = assembled("llama", tower, image_scales=scales, merge_image_tokens=2)
    pixels = torch.rand(2, 3, 64 if scales else 32, 64 if scales else 32)
    expected = model.model.multi_modal_projector.project(merge_tokens(plain.model.tower_features(pixels), 2))
    found = model.model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(torch.stack(list(found)), expected)
    torch.testing.assert_close(model.model.multi_modal_projector.project(model.model.tower_features(pixels)), expected)
    assert expected.shape[1] == 4
    assert model.config.tower_tokens == plain.config.tower_tokens


def test_a_model_with_merged_tokens_trains_answers_and_is_saved(
    assembled: Callable, batch_of: Callable, tmp_path
) -> None:
    model, processor = assembled("llama", "clip", merge_image_tokens=2, chat_template="plain")
    assert model.config.gate_grid == 2
    batch = batch_of(processor, ["<image> what colour is it ?", "<image> is it red ?"])
    assert (batch["input_ids"] == model.config.image_token_id).sum() == 2 * 4
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100
    output = model(**batch, labels=labels)
    output.loss.backward()
    assert output.alignment_weights.shape == (2, 7)
    width = model.config.vision_config.hidden_size
    gradient = model.model.multi_modal_projector.linear_1.weight.grad
    for patch in range(4):
        assert gradient[:, patch * width : (patch + 1) * width].abs().sum() > 0

    answer = model.generate(**batch, max_new_tokens=4, do_sample=False)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert again.config.merge_image_tokens == 2
    assert torch.equal(again.generate(**batch, max_new_tokens=4, do_sample=False), answer)
    assert AutoProcessor.from_pretrained(tmp_path).image_seq_length == 4


def test_a_tower_whose_grid_cannot_be_merged_is_refused_by_name(assembled: Callable) -> None:
    with pytest.raises(BackboneError, match=r"clip.*merge_image_tokens 3 does not divide"):
        assembled("llama", merge_image_tokens=3)


def test_the_original_code_has_no_merged_tokens(assembled: Callable, tmp_path) -> None:
    model, processor = assembled("llama", merge_image_tokens=2)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with pytest.raises(LayoutError, match="merge_image_tokens 2 does not fit the original code"):
        to_original(tmp_path / "model", tmp_path / "out", vision_tower="clip")


def test_the_engine_answers_with_merged_tokens(assembled: Callable, pictures) -> None:
    engine = Engine(*assembled("llama", merge_image_tokens=2))
    questions = [Request.ask("what is this ?", pictures[0]), Request.ask("is it red ?", pictures[1])]
    sampling = Sampling(max_new_tokens=4)
    together = engine.answer(questions, sampling)
    assert [answer.text for answer in together] == [engine.answer([one], sampling)[0].text for one in questions]
    assert len(together[0].alignment_weights) == 7


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize(("size", "scales"), [(48, None), (None, (32, 64)), (None, None)])
def test_a_blank_picture_is_as_large_as_the_pictures_that_are_read(
    assembled: Callable, batch_of: Callable, merge: int, size: int | None, scales: tuple[int, ...] | None
) -> None:
    options = {"image_size": size} if size else {"image_scales": scales} if scales else {}
    model, processor = assembled("llama", "dinov2", merge_image_tokens=merge, chat_template="plain", **options)
    pixels = batch_of(processor, ["<image> what ?"])["pixel_values"]
    blank = model.model.blank_picture()
    assert blank.shape == pixels.shape
    assert model.model.tower_features(blank).shape == model.model.tower_features(pixels).shape
    # A batch of text alone keeps the projector in the graph by way of such a picture.
    model.train()
    texts = batch_of(processor, ["is it red ?"])
    model(**texts, labels=texts["input_ids"]).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad is not None
