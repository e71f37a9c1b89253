"""The model at the start of a stage, and the checks before it begins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aligngpt.model.assembling import assemble
from aligngpt.training.feed.datasets import usable_length
from aligngpt.training.recipe import Recipe, RecipeError
from aligngpt.training.run import train
from aligngpt.training.setup.loading import load_model
from aligngpt.training.setup.pretrained_parts import PRETRAINED_FILE
from aligngpt.training.stage import model_folder

TABLE = "model.alignment.levels"


def test_samples_are_no_longer_than_the_language_model_reads(
    assembled: Callable, tiny_recipe: Callable[..., Recipe]
) -> None:
    model, _ = assembled("qwen2")
    stage = tiny_recipe(pretrain__max_length=200).pretrain
    assert usable_length(model, stage) == 200
    model.config.text_config.max_position_embeddings = 64
    assert usable_length(model, stage) == 64


def test_an_image_that_fills_all_of_a_sample_is_an_error(tiny_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match=r"takes 16 tokens, but a sample may have only 16 .*raise max_length"):
        train(tiny_recipe(pretrain__max_length=16), ["pretrain"])


def test_a_fresh_level_table_is_all_that_differs_from_the_pretrained_start(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    train(tiny_recipe(), ["pretrain"])
    start = {"pretrain": None, "instruct__pretrained": str(tmp_path / "run" / "pretrain" / PRETRAINED_FILE)}

    def weights(**changes: Any) -> dict[str, torch.Tensor]:
        return load_model(tiny_recipe(**changes), "instruct")[0].state_dict()

    pretrained, fresh = weights(), weights(instruct__fresh_level_table=True)
    assert [name for name in fresh if not torch.equal(fresh[name], pretrained[name])] == [TABLE]
    assert torch.equal(weights(**start, instruct__fresh_level_table=True)[TABLE], fresh[TABLE])
    assert not torch.equal(weights(**start, instruct__fresh_level_table=True, seed=1)[TABLE], fresh[TABLE])
    # Not the table that pre-training began with, which the projector was trained around.
    recipe = tiny_recipe()
    first = assemble(recipe.model.vision_tower, recipe.model.language_model, seed=recipe.seed)[0].state_dict()
    assert not torch.equal(first[TABLE], fresh[TABLE])


def test_a_model_trained_with_adapters_has_the_fresh_level_table_it_was_trained_with(
    tiny_recipe: Callable[..., Recipe],
) -> None:
    """Its frozen weights are read a second time."""
    recipe = tiny_recipe(instruct__fresh_level_table=True, instruct__lora={}, instruct__max_steps=1)
    train(recipe)
    written = load_file(model_folder(recipe) / "model.safetensors")
    assert torch.equal(written[TABLE], load_model(recipe, "instruct")[0].state_dict()[TABLE])
