"""Adapters in the language model: they change nothing at first, train alone, and are merged away."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from aligngpt.training.lora import MARK, add_lora, merge_lora
from aligngpt.training.recipe import LoraRecipe
from aligngpt.training.run import model_folder, train
from aligngpt.training.stages import freeze_all_but, part_of, trained_tensors

TEXTS = ["USER : <image> what colour is the circle ? ASSISTANT :", "USER : describe it ASSISTANT :"]


@pytest.mark.parametrize("language", ["llama", "llama_tied", "gpt2", "phi"])
def test_new_adapters_change_nothing_and_merged_ones_stay(
    assembled: Callable, batch_of: Callable, language: str
) -> None:
    model, processor = assembled(language, chat_template="plain")
    batch = batch_of(processor, TEXTS)
    names = {name for name, _ in model.named_parameters()}
    expected = model(**batch).logits
    add_lora(model, LoraRecipe(rank=4), seed=0)
    torch.testing.assert_close(model(**batch).logits, expected)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if MARK in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    changed = model(**batch).logits
    assert not torch.allclose(changed, expected, atol=1e-2)
    merge_lora(model)
    torch.testing.assert_close(model(**batch).logits, changed, rtol=1e-3, atol=1e-3)
    assert {name for name, _ in model.named_parameters()} == names


def test_only_the_language_model_has_adapters(assembled: Callable) -> None:
    model, _ = assembled()
    add_lora(model, LoraRecipe(), seed=0)
    adapters = [name for name, _ in model.named_parameters() if MARK in name]
    assert adapters
    assert all(name.startswith("model.language_model.layers.") for name in adapters)
    # Seven linear layers in each of two layers, two matrices each.
    assert len(adapters) == 2 * 7 * 2


def test_adapters_train_in_place_of_the_weights(assembled: Callable) -> None:
    model, _ = assembled()
    add_lora(model, LoraRecipe(), seed=0)
    freeze_all_but(model, ("language_model", "projector", "gate"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {part_of(name) for name in trained} == {"language_model", "projector", "gate"}
    assert all(MARK in name for name in trained if part_of(name) == "language_model")
    freeze_all_but(model, ("projector",))
    assert not any(MARK in name for name in trained_tensors(model))


def test_the_seed_decides_where_adapters_start(assembled: Callable) -> None:
    starts = []
    for seed in (0, 0, 1):
        model, _ = assembled()
        torch.rand(3)
        add_lora(model, LoraRecipe(), seed=seed)
        starts.append(torch.cat([p.flatten() for name, p in model.named_parameters() if "lora_A" in name]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stage_with_adapters_leaves_an_ordinary_model(tiny_recipe: Callable, precision: str) -> None:
    recipe = tiny_recipe(instruct__lora={"rank": 4}, instruct__precision=precision)
    plain = tiny_recipe(
        output=str(Path(recipe.output).with_name("plain")), instruct__max_steps=1, instruct__learning_rate=1e-12
    )
    train(recipe)
    train(plain)
    found, start = (
        AutoModelForImageTextToText.from_pretrained(model_folder(one)).state_dict() for one in (recipe, plain)
    )
    assert found.keys() == start.keys()
    changed = {name for name in found if not torch.equal(found[name], start[name])}
    assert {part_of(name) for name in changed} == {"language_model", "projector", "gate"}
    assert "lm_head.weight" not in changed
    # What bfloat16 rounds in the frozen weights while training is not in the model that is left.
    weight = "model.language_model.layers.0.self_attn.q_proj.weight"
    difference = found[weight] - start[weight]
    assert torch.linalg.matrix_rank(difference.double(), rtol=1e-3) <= 4
