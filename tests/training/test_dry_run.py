"""Dry runs: predictions match what the run then does, and only small files are read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aligngpt.model.assembling import assemble
from aligngpt.model.backbones import BackboneError
from aligngpt.training.dry_run import plan
from aligngpt.training.recipe import Recipe
from aligngpt.training.run import train
from aligngpt.training.setup.freezing import freeze_all_but
from aligngpt.training.setup.parameter_summary import parts_of

TinyRecipe = Callable[..., Recipe]


@pytest.mark.parametrize("language", ["qwen2", "llama_tied", "phi"])
def test_parts_are_those_of_the_real_model(tiny_recipe: TinyRecipe, language: str) -> None:
    recipe = tiny_recipe(language)
    model, _ = assemble(recipe.model.vision_tower, recipe.model.language_model)
    for one in plan(recipe):
        stage = recipe.stage(one.stage)
        freeze_all_but(model, stage.train)
        assert one.parts == parts_of(model, stage)


def test_steps_are_those_that_are_then_done(tiny_recipe: TinyRecipe) -> None:
    changes = {"pretrain__max_steps": None, "instruct__max_steps": None, "instruct__epochs": 2.0}
    recipe = tiny_recipe(**changes)
    foretold = {one.stage: one.steps for one in plan(recipe)}
    assert foretold == {result.stage: result.steps for result in train(recipe)}
    assert foretold == {"pretrain": 3, "instruct": 14}


def test_no_weights_and_no_images_are_read(tiny_recipe: TinyRecipe, data: Path) -> None:
    recipe = tiny_recipe()
    for weights in [*Path(recipe.model.vision_tower).glob("*.safetensors"), *data.glob("*.png")]:
        weights.rename(weights.with_suffix(".away"))
    try:
        one = plan(recipe, ("pretrain",))[0]
    finally:
        for weights in Path(recipe.model.vision_tower).glob("*.away"):
            weights.rename(weights.with_suffix(".safetensors"))
    assert one.data is not None and one.data.samples == 12
    assert not Path(recipe.output).exists()


def test_rows_that_share_their_image_count_it_once(tiny_recipe: TinyRecipe) -> None:
    alone = plan(tiny_recipe(), ("instruct",))[0].data
    shared = plan(tiny_recipe(instruct__questions_per_prefix=2), ("instruct",))[0].data
    assert alone.rows == alone.samples == shared.samples == 25
    assert shared.rows == 13
    # Both have all tokens of the samples, except for twelve copies of sixteen image tokens.
    assert shared.rows * shared.tokens == pytest.approx(alone.rows * alone.tokens - 12 * 16)


def test_memory_is_that_of_weights_gradients_and_moments(tiny_recipe: TinyRecipe) -> None:
    pretrain, instruct = plan(tiny_recipe(instruct__precision="bfloat16"))
    trained = sum(row.trained for row in pretrain.parts)
    everything = sum(row.parameters for row in pretrain.parts)
    assert pretrain.memory.weights == 4 * everything
    assert pretrain.memory.training == 12 * trained
    # Autocast holds a bfloat16 copy of the trained parameters.
    assert instruct.memory.training == 14 * sum(row.trained for row in instruct.parts)
    assert instruct.memory.activations > pretrain.memory.activations / 2 > 0
    adapters = plan(tiny_recipe(instruct__precision="bfloat16", instruct__lora={"rank": 2}), ("instruct",))[0]
    assert sum(adapters.memory) < sum(instruct.memory)


def test_data_that_is_not_there_yet_is_said(tiny_recipe: TinyRecipe) -> None:
    one = plan(tiny_recipe(pretrain__data="nowhere.json", pretrain__max_steps=None), ("pretrain",))[0]
    assert one.data is None and one.steps is None and one.work is None
    assert "no data at nowhere.json" in one.text()
    assert "memory per device" in one.text()


def test_the_text_says_all_of_it(tiny_recipe: TinyRecipe) -> None:
    text = plan(tiny_recipe(instruct__minutes=3), ("instruct",))[0].text()
    for words in ("[instruct]", "language model", "25 samples in 25 rows", "steps: 4", "on this machine", "3 minutes"):
        assert words in text


def test_a_backbone_that_is_not_there_is_an_error(tiny_recipe: TinyRecipe, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps({}))
    recipe = tiny_recipe(model__language_model=str(tmp_path / "empty"))
    with pytest.raises(BackboneError, match="language model"):
        plan(recipe)
