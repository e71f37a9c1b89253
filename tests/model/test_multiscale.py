"""Several scales of an image: the result matches the definition, with any tower."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor

from aligngpt.model.backbones import BackboneError
from aligngpt.model.multiscale import crops_of_scales, crops_per_image, merge_scales

SCALES = (32, 64, 96)
TOWERS = ["clip", "siglip", "dinov2", "dinov2_registers"]
LEADING = {"clip": 1, "siglip": 0, "dinov2": 1, "dinov2_registers": 5}
"""Tokens before the patches: class token and registers."""


@pytest.mark.parametrize("tower", TOWERS)
def test_features_are_those_of_the_squares_put_together_and_averaged(assembled: Callable, tower: str) -> None:
    model, _ = assembled("llama", tower, image_scales=SCALES)
    pixels = torch.rand(2, 3, 96, 96)
    seen = []
    model.model.multi_modal_projector.linear_1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.model.get_image_features(pixels)

    first = LEADING[tower]
    for image, found in zip(pixels, seen[0], strict=True):
        channels = []
        for scale in SCALES:
            picture = image[None]
            if scale != 96:
                picture = F.interpolate(picture, size=(scale, scale), mode="bicubic")
            splits = scale // 32
            whole = torch.empty(4 * splits, 4 * splits, model.config.vision_config.hidden_size)
            for row in range(splits):
                for column in range(splits):
                    square = picture[..., 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
                    hidden = model.model.vision_tower(square, output_hidden_states=True).hidden_states[-2]
                    whole[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = hidden[0, first:].unflatten(0, (4, 4))
            # Token (i, j) of the smallest scale is the mean of the splits × splits tokens that cover it.
            cells = whole.reshape(4, splits, 4, splits, -1).mean(dim=(1, 3))
            channels.append(cells.reshape(16, -1))
        torch.testing.assert_close(found, torch.cat(channels, dim=-1), rtol=1e-4, atol=1e-5)


def test_merging_keeps_each_image_and_each_scale_apart() -> None:
    features = torch.cat([torch.full((2 * splits**2, 16, 1), float(splits)) for splits in (1, 2, 3)])
    assert len(features) == 2 * crops_per_image(SCALES)
    assert torch.equal(merge_scales(features, SCALES), torch.tensor([1.0, 2.0, 3.0]).expand(2, 16, 3))


def test_squares_of_all_images_come_scale_by_scale() -> None:
    pixels = torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64)])
    crops = crops_of_scales(pixels, (32, 64))
    assert crops.shape == (10, 3, 32, 32)
    torch.testing.assert_close(crops.mean(dim=(1, 2, 3)), torch.tensor([0.0, 1.0] * 5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tower", TOWERS)
def test_a_model_with_scales_trains_answers_and_is_saved(
    assembled: Callable, batch_of: Callable, tmp_path, tower: str
) -> None:
    model, processor = assembled("llama", tower, image_scales=SCALES, chat_template="plain")
    batch = batch_of(processor, ["<image> what colour is it ?", "<image> is it red ?"])
    assert batch["pixel_values"].shape == (2, 3, 96, 96)
    assert (batch["input_ids"] == model.config.image_token_id).sum() == 2 * 16
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100
    model(**batch, labels=labels).loss.backward()
    width = model.config.vision_config.hidden_size
    gradient = model.model.multi_modal_projector.linear_1.weight.grad
    for scale in range(3):
        assert gradient[:, scale * width : (scale + 1) * width].abs().sum() > 0

    answer = model.generate(**batch, max_new_tokens=4, do_sample=False)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert again.config.image_scales == list(SCALES)
    assert torch.equal(again.generate(**batch, max_new_tokens=4, do_sample=False), answer)
    assert AutoProcessor.from_pretrained(tmp_path).image_processor.crop_size["height"] == 96


@pytest.mark.parametrize("scales", [(64, 32), (32, 48), (32, 32), ()])
def test_scales_that_cannot_be_cut_into_squares_are_refused(assembled: Callable, scales: tuple[int, ...]) -> None:
    if not scales:
        assert assembled("llama", image_scales=scales)[0].config.image_scales is None
        return
    with pytest.raises(BackboneError, match="ascending multiples"):
        assembled("llama", image_scales=scales)


def test_scales_and_another_image_size_are_refused(assembled: Callable) -> None:
    with pytest.raises(BackboneError, match="not both"):
        assembled("llama", image_scales=SCALES, image_size=64)
