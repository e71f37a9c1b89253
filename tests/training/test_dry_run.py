"""Dry runs: predictions match what the run then does, and only small files are read."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aligngpt.model.assembling import assemble
from aligngpt.model.backbones import BackboneError
from aligngpt.training.dry_run import StagePlan, plan
from aligngpt.training.flops import ModelFlops
from aligngpt.training.recipe import Recipe, RecipeError
from aligngpt.training.run import train
from aligngpt.training.setup.freezing import freeze_all_but
from aligngpt.training.setup.loading import load_model
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


@pytest.mark.medium
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


def test_frozen_parts_are_held_in_the_precision_of_the_computation(tiny_recipe: TinyRecipe) -> None:
    for precision, size in (("bfloat16", 2), ("float32", 4)):
        one = plan(tiny_recipe(instruct__precision=precision), ("instruct",))[0]
        trained = sum(row.trained for row in one.parts)
        frozen = sum(row.parameters for row in one.parts) - trained
        assert frozen > 0
        assert one.memory.weights == 4 * trained + size * frozen


def test_recomputing_fewer_layers_takes_less_work_and_the_best_setting_is_said(
    tiny_recipe: TinyRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(value: bool | int) -> StagePlan:
        return plan(tiny_recipe(instruct__gradient_checkpointing=value), ("instruct",))[0]

    monkeypatch.setattr("aligngpt.training.dry_run.device_memory", lambda device: 10**12)
    none, half, all_of_it = of(False), of(2), of(True)
    assert none.work < half.work < all_of_it.work
    assert none.work + all_of_it.work == pytest.approx(2 * half.work)
    said = "this device's 1000.0 GB, gradient_checkpointing: false recomputes the fewest layers"
    assert said in half.text() and said in all_of_it.text() and "gradient_checkpointing" not in none.text()


def test_data_that_is_not_there_yet_is_said(tiny_recipe: TinyRecipe) -> None:
    one = plan(tiny_recipe(pretrain__data="nowhere.json", pretrain__max_steps=None), ("pretrain",))[0]
    assert one.data is None and one.steps is None and one.work is None
    assert "no data at nowhere.json" in one.text()
    assert "memory per device" in one.text()


def test_the_text_says_all_of_it(tiny_recipe: TinyRecipe) -> None:
    text = plan(tiny_recipe(instruct__minutes=3), ("instruct",))[0].text()
    for words in ("[instruct]", "language model", "25 samples in 25 rows", "steps: 4", "on this machine", "3 minutes"):
        assert words in text
    assert "problem" not in text


@pytest.fixture
def fixed_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 10⁹ floating-point operations per second."""
    monkeypatch.setattr("aligngpt.training.dry_run.matrix_product_rate", lambda device, dtype: 1e9)


@pytest.mark.usefixtures("fixed_speed")
def test_the_time_is_that_of_the_recipes_minutes_where_they_end_the_stage(tiny_recipe: TinyRecipe) -> None:
    steps = {"instruct__max_steps": 10**12}
    unlimited = plan(tiny_recipe(**steps), ("instruct",))[0]
    assert unlimited.all_steps is None and unlimited.seconds > 60
    limited = plan(tiny_recipe(**steps, instruct__minutes=0.5), ("instruct",))[0]
    assert (limited.seconds, limited.all_steps) == (30, unlimited.seconds)
    text = limited.text()
    assert "about 30 seconds on this machine, limited by the recipe's minutes: all steps would take" in text
    assert "steps: 1,000,000,000,000 at most" in text
    # The minimum number of steps takes longer than the minutes.
    least = plan(tiny_recipe(**steps, instruct__minutes=0.5, instruct__min_steps=10**12 // 2), ("instruct",))[0]
    assert least.all_steps is not None and least.seconds == pytest.approx(least.all_steps / 2)
    enough = plan(tiny_recipe(instruct__minutes=3), ("instruct",))[0]
    assert enough.all_steps is None and enough.seconds < 180


@pytest.mark.usefixtures("fixed_speed")
def test_the_warm_start_is_part_of_the_time(tiny_recipe: TinyRecipe) -> None:
    plain = plan(tiny_recipe(), ("pretrain",))[0]
    assert plain.warm_start == 0 and "warm start" not in plain.text()
    warm = plan(tiny_recipe(pretrain__warm_start={"steps": 10**9}, pretrain__minutes=0.001), ("pretrain",))[0]
    assert warm.warm_start > 60 and warm.seconds > warm.warm_start
    assert "of it for the warm start" in warm.text()
    # 12 pairs of 16 image tokens per step; forward and backward pass are three products.
    projector = next(row.parameters for row in warm.parts if row.part == "projector")
    assert warm.warm_start == pytest.approx(10**9 * 12 * 16 * 6 * projector / (0.5 * 1e9), rel=1e-6)


def test_what_train_would_refuse_is_a_problem(tiny_recipe: TinyRecipe, data: Path) -> None:
    swapped = tiny_recipe(pretrain__data=str(data / "questions.json"), instruct__data=str(data / "captions.json"))
    pretrain, instruct = plan(swapped)
    assert len(pretrain.problems) == 1 and "look swapped" in pretrain.problems[0]
    assert f"problem, `aligngpt train` would stop here: {pretrain.problems[0]}" in pretrain.text()
    assert instruct.problems == () and not any("swapped" in note for note in instruct.notes)
    # Without levels, the same files are valid.
    told = plan(swapped.model_copy(update={"model": swapped.model.model_copy(update={"alignment": "none"})}))
    assert told[0].problems == () and any("if they are swapped" in note for note in told[1].notes)
    with pytest.raises(RecipeError, match="look swapped"):
        train(swapped)
    missing = plan(tiny_recipe(instruct__data="nowhere.json"), ("instruct",))[0]
    assert missing.problems == ("instruct.data: nowhere.json does not exist; correct the path in the recipe",)


def test_a_backbone_that_is_not_there_is_an_error(tiny_recipe: TinyRecipe, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps({}))
    recipe = tiny_recipe(model__language_model=str(tmp_path / "empty"))
    with pytest.raises(BackboneError, match="language model"):
        plan(recipe)


def test_the_operations_of_a_step_are_said(tiny_recipe: TinyRecipe) -> None:
    one, two = plan(tiny_recipe())
    for stage in (one, two):
        assert "floating-point operations (layers " in stage.text()
        assert "tokens per second at 40% of a card's peak in bfloat16: H200 " in stage.text()


def operations(text: str, begin: str) -> float:
    found = re.search(rf"{begin}: (\S+) floating-point operations", text)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"instruct__lora": {"rank": 2}},
        {"instruct__train": ["projector"]},
        {"instruct__train": ["projector", "vision_tower"], "instruct__vision_blocks": 1},
    ],
)
def test_the_work_is_that_of_the_steps(tiny_recipe: TinyRecipe, changes: dict[str, Any]) -> None:
    recipe = tiny_recipe(**changes)
    [one] = plan(recipe, ("instruct",))
    assert one.work == pytest.approx(4 * operations(one.text(), "a step"), rel=0.005)
    assert operations(one.text(), "work") == pytest.approx(one.work, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"max_steps": None, "epochs": 2.0, "batch_size": 32}, 2 * 25),
        ({"max_steps": None, "epochs": 0.5, "batch_size": 10}, 2 * 10),
        ({"max_steps": 4, "batch_size": 10}, 25 + 10),
    ],
)
def test_the_last_step_of_an_epoch_has_the_rows_that_are_left(
    tiny_recipe: TinyRecipe, changes: dict[str, Any], rows: int
) -> None:
    recipe = tiny_recipe(**{f"instruct__{name}": value for name, value in changes.items()})
    [one] = plan(recipe, ("instruct",))
    of_row = operations(one.text(), "a step") / recipe.instruct.batch_size
    assert one.work == pytest.approx(rows * of_row, rel=0.005)


def test_adapters_count_once_and_a_frozen_head_has_no_gradient(tiny_recipe: TinyRecipe) -> None:
    recipe = tiny_recipe(instruct__lora={"rank": 2})
    [one] = plan(recipe, ("instruct",))
    model, _ = load_model(recipe, "instruct", weights=False)
    freeze_all_but(model, recipe.instruct.train, levels_given=False)
    assert any("lora_" in name for name, _ in model.named_parameters())
    flops, data = ModelFlops.of(model), one.data
    head = model.lm_head.weight
    assert not head.requires_grad and flops.head == 4 * head.numel()
    row = flops.of_batch(torch.arange(1, round(data.tokens) + 1), round(data.counted), encoded=1, projected=1)
    expected = row.layers + row.attention + row.head + data.images * (row.tower + row.projector)
    assert operations(one.text(), "a step") == pytest.approx(4 * expected, rel=0.01)
    assert one.work == pytest.approx(4 * 4 * expected)


def test_recomputing_all_layers_adds_their_forward_pass(tiny_recipe: TinyRecipe) -> None:
    def of(value: bool) -> StagePlan:
        return plan(tiny_recipe(instruct__gradient_checkpointing=value), ("instruct",))[0]

    none, every = of(False), of(True)
    model, _ = load_model(tiny_recipe(), "instruct", weights=False)
    flops = ModelFlops.of(model.requires_grad_(False))
    keys = torch.arange(1, round(none.data.tokens) + 1)
    forward = flops.of_batch(keys, 0, encoded=0, projected=0)
    assert every.work - none.work == pytest.approx(4 * 4 * (forward.layers + forward.attention))


def test_an_image_that_does_not_fit_is_a_problem(tiny_recipe: TinyRecipe) -> None:
    # An image takes 16 tokens.
    packed = {"instruct__micro_batch_tokens": 256, "instruct__packing": "packed"}
    for one in plan(tiny_recipe(pretrain__max_length=16, instruct__max_length=16, **packed)):
        assert len(one.problems) == 1 and "an image takes 16 tokens, but a sample may have only 16" in one.problems[0]
        assert one.steps == 4 and one.work is None and not one.speed
        assert one.memory.activations > 0
        text = one.text()
        assert f"data: {one.data.rows} samples in {one.data.rows} rows; none of those looked at" in text
        assert "leaves no room for an answer within 16; increase max_length" in text


def test_samples_that_lose_their_end_are_noted(tiny_recipe: TinyRecipe, data: Path) -> None:
    lengths = (3, 30, 3, 60)
    records = [{"question": "is it red ?", "answer": "red " * length} for length in lengths]
    (data / "long.json").write_text(json.dumps(records))
    [one] = plan(tiny_recipe(instruct__data=str(data / "long.json"), instruct__max_length=40), ("instruct",))
    [note] = [note for note in one.notes if "tokens" in note]
    assert note.startswith("2 of 4 samples looked at have more than 40 tokens (up to ")
    assert note.endswith("they lose turns or the end of an answer; raise instruct.max_length")
    [whole] = plan(tiny_recipe(instruct__data=str(data / "long.json"), instruct__max_length=256), ("instruct",))
    assert f"(up to {whole.data.longest})" in note and not any("lose turns" in note for note in whole.notes)


def test_samples_that_do_not_fit_do_not_shorten_the_average(tiny_recipe: TinyRecipe, data: Path) -> None:
    records = [{"question": "is it red ?", "answer": "no"}, {"question": "red " * 200, "answer": "no"}]
    averages = []
    for number, kept in enumerate((records[:1], records)):
        (data / f"{number}.json").write_text(json.dumps(kept))
        [one] = plan(tiny_recipe(instruct__data=str(data / f"{number}.json"), instruct__max_length=64), ("instruct",))
        averages.append((one.data.rows, one.data.tokens, one.data.counted))
    assert averages[0][0] == 1 and averages[1] == (2, *averages[0][1:])
