"""Backbones that load silently must compute the same as before, or be refused with the reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_backbones import save_language_model, save_larger_model
from tiny_models import Assembled
from torch import Tensor
from transformers import AutoModelForImageTextToText

from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.examples import Example, Row
from aligngpt.model.assembling import assemble
from aligngpt.model.backbones import BackboneError
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.training.setup.freezing import freeze_all_but

LONG = "<image> how many are there in this picture and please describe the small red square ?"
TEXTS = ["<image> what colour is it ?", LONG]
STEPS = 4
GREEDY: dict[str, Any] = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
SCORES: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True}
PIXELS = torch.linspace(-2, 2, 3 * 32 * 32).reshape(1, 3, 32, 32)


# Weights


@pytest.mark.parametrize("name", ["LLaVA", "LLaVA-OneVision", "PaliGemma", "Gemma 3", "Idefics3", "AIMv2"])
def test_a_tower_inside_a_larger_model_keeps_its_weights(
    language_folder: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    tower = save_larger_model(tmp_path, name)
    model, _ = assemble(tmp_path, language_folder("llama"))
    with torch.no_grad():
        expected = tower(PIXELS, output_hidden_states=True).hidden_states
        found = model.model.vision_tower(PIXELS, output_hidden_states=True).hidden_states
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_language_model_without_its_output_layer_is_refused(
    tower_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    save_language_model(tmp_path, "llama").base_model.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"no weights for lm_head\.weight of LlamaForCausalLM"):
        assemble(tower_folder("clip"), tmp_path)


def without(folder: Path, part: str, target: Path) -> int:
    """Copy a folder without the tensors whose name contains `part`; return the number of tensors omitted."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if part not in name}
    save_file(kept, target / "model.safetensors", {"format": "pt"})
    return len(tensors) - len(kept)


def test_a_tower_that_lacks_what_its_features_need_is_refused(
    tower_folder: Callable[[str], Path], language_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    assert without(tower_folder("siglip"), "layers.1.mlp.fc1.bias", tmp_path / "tower") == 1
    with pytest.raises(BackboneError, match=r"tower has no weights for \S*layers\.1\.mlp\.fc1\.bias of its Siglip"):
        assemble(tmp_path / "tower", language_folder("llama"))


def test_a_tower_may_lack_its_pooling_head(
    tower_folder: Callable[[str], Path], language_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    assert without(tower_folder("siglip"), "head.", tmp_path / "tower") > 5
    model, _ = assemble(tmp_path / "tower", language_folder("llama"))
    whole, _ = assemble(tower_folder("siglip"), language_folder("llama"))
    assert torch.equal(model.model.tower_features(PIXELS), whole.model.tower_features(PIXELS))


def test_falcon_h1_says_the_same_after_saving_and_loading(
    assembled: Callable, batch_of: Callable, tmp_path: Path
) -> None:
    model, processor = assembled("falcon_h1", chat_template="plain")
    batch = batch_of(processor, TEXTS)
    with torch.no_grad():
        expected = model(**batch).logits
        model.save_pretrained(tmp_path)
        # Fill memory with NaN, so that an uninitialised buffer cannot hold the right values by chance.
        _ = [torch.full((size,), torch.nan) for size in range(1, 4000, 7)]
        found = AutoModelForImageTextToText.from_pretrained(tmp_path)(**batch).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("moshi", r"moshi: it has embeddings for \d+ tokens and an output layer for \d+; they must match"),
        ("xlstm", r"xLSTMForCausalLM cannot be given \d more tokens"),
    ],
)
def test_a_language_model_that_cannot_be_given_more_tokens_is_refused(
    with_language: Callable[..., Assembled], name: str, expected: str
) -> None:
    with pytest.raises(BackboneError, match=expected):
        with_language(name)


def test_a_tower_in_a_larger_model_that_reads_grids_is_refused(
    language_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    save_larger_model(tmp_path, "Qwen2.5-VL")
    with pytest.raises(BackboneError, match=r"towers that read patches or grids of any shape are not supported"):
        assemble(tmp_path, language_folder("llama"))


# Text and answers


def assert_continues_as_alone(model: Any, processor: Any, batch_of: Callable) -> None:
    """Prompts with images, continued in a batch and alone, have the logits of the whole sequence without a cache."""
    batch = batch_of(processor, TEXTS)
    together = model.generate(**batch, **GREEDY, **SCORES)
    new = together.sequences[:, batch["input_ids"].shape[1] :]
    for row, text in enumerate(TEXTS):
        alone = batch_of(processor, [text], start=row)
        prompt = alone["input_ids"].shape[1]
        ids = torch.cat([alone["input_ids"], new[row : row + 1, :-1]], dim=1)
        instruction = (torch.arange(ids.shape[1]) < prompt).unsqueeze(0)
        with torch.no_grad():
            expected = model(
                input_ids=ids, pixel_values=alone["pixel_values"], instruction_mask=instruction, use_cache=False
            ).logits[0, prompt - 1 :]
        words = expected.isfinite()
        found = torch.stack(together.logits, dim=1)[row]
        assert ((found - expected)[words].abs().max() <= 1e-3 * expected[words].abs().max()).item()
        single = model.generate(**alone, **GREEDY)[0, prompt:]
        assert torch.equal(single, new[row])


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba"])
def test_a_batch_of_a_language_model_of_states_continues_as_alone(
    with_language: Callable[..., Assembled], batch_of: Callable, name: str
) -> None:
    assert_continues_as_alone(*with_language(name), batch_of)


@pytest.mark.parametrize("name", ["gpt1", "minimax"])
def test_a_cache_of_another_kind_is_not_used_wrongly(
    with_language: Callable[..., Assembled], batch_of: Callable, name: str
) -> None:
    assert_continues_as_alone(*with_language(name), batch_of)


@pytest.mark.parametrize("name", ["llama", "phi", "jamba", "mamba", "falcon_mamba"])
def test_half_precision_is_no_reason_to_refuse_or_to_leave_the_cache_out(
    with_language: Callable[..., Assembled], batch_of: Callable, name: str
) -> None:
    model, processor = with_language(name, torch.bfloat16)
    assert model.generation_config.use_cache
    batch = batch_of(processor, TEXTS)
    labels = batch["input_ids"].masked_fill(batch["input_ids"] >= min(model.config.placeholder_ids), IGNORE_INDEX)
    model.train()
    try:
        loss = model(**batch, labels=labels, instruction_mask=batch["attention_mask"]).loss
        loss.backward()
    finally:
        model.zero_grad()
        model.eval()
    with torch.no_grad():
        expected = model(**batch, labels=labels, instruction_mask=batch["attention_mask"]).loss
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize("name", ["rwkv", "recurrent_gemma"])
def test_a_language_model_that_reads_padding_is_refused(with_language: Callable[..., Assembled], name: str) -> None:
    with pytest.raises(BackboneError, match=f"{name}: .* answers a prompt in a batch, .* differently than alone"):
        with_language(name)


def test_the_logits_of_a_language_model_are_capped_under_either_name(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled()
    batch = batch_of(processor, TEXTS)
    with torch.no_grad():
        plain = model(**batch).logits
        found = {}
        for name in ("final_logit_softcapping", "logits_soft_cap"):
            setattr(model.config.text_config, name, 2.0)
            found[name] = model(**batch).logits
            setattr(model.config.text_config, name, None)
    words = plain.isfinite()
    for logits in found.values():
        torch.testing.assert_close(logits[words], 2 * torch.tanh(plain[words] / 2))


# Pixels


@pytest.mark.parametrize("mean", ["kept", "null"])
def test_pixels_that_the_tower_normalises_itself_are_left_alone(
    tower_folder: Callable[[str], Path],
    language_folder: Callable[[str], Path],
    tmp_path: Path,
    pictures: list[Image.Image],
    mean: str,
) -> None:
    folder = shutil.copytree(tower_folder("clip"), tmp_path / "tower")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["do_normalize"] = False
    if mean == "null":
        settings |= {"image_mean": None, "image_std": None}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    _, processor = assemble(folder, language_folder("llama"))
    found = processor.image_processor(pictures[0], return_tensors="pt")["pixel_values"][0]
    expected = torch.from_numpy(np.asarray(pictures[0]) / 255).permute(2, 0, 1).float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# Per-layer embeddings


def row_of(model: Any, words: list[int], answer: list[int], pixels: Tensor | None) -> Row:
    """BOS, `<align>`, image tokens, words, and an answer that counts."""
    config = model.config
    image = [] if pixels is None else [config.align_token_index, *[config.image_token_index] * config.image_seq_length]
    opening = [1, *image, *words]
    return (Example([*opening, *answer], [IGNORE_INDEX] * len(opening) + answer, pixels, None),)


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_a_language_model_with_embeddings_in_each_layer_learns_from_pictures(
    with_language: Callable[..., Assembled], name: str
) -> None:
    model, processor = with_language(name)
    rows = [
        row_of(model, [5, 6, 7], [8, 9], PIXELS),
        row_of(model, [6], [7, 7, 4], None),
        row_of(model, [9, 10], [5], -PIXELS),
    ]
    collator = Collator(processor.tokenizer.pad_token_id)
    trained = ("language_model", "projector", "gate")
    freeze_all_but(model, trained)
    model.train()
    try:
        loss = model(**collator(rows), num_items_in_batch=6).loss
        loss.backward()
        alone = sum(model(**collator([row]), num_items_in_batch=6).loss.item() for row in rows)
        assert loss.item() == pytest.approx(alone, rel=1e-5)
        for part in (model.model.language_model, model.model.multi_modal_projector, model.model.alignment):
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
        before = loss.item()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3).step()
        assert model(**collator(rows), num_items_in_batch=6).loss.item() < before
    finally:
        model.zero_grad()
        model.eval()


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_a_language_model_with_embeddings_in_each_layer_answers_as_alone(
    with_language: Callable[..., Assembled], batch_of: Callable, name: str
) -> None:
    assert_continues_as_alone(*with_language(name), batch_of)
