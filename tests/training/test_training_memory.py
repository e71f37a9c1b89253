"""Settings that save memory: what they change, what they leave alone, and what the folders and cards say of it."""

import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from aligngpt.training import stage_run
from aligngpt.training.loop.callback import StageCallback
from aligngpt.training.memory_plan import MemoryEstimate
from aligngpt.training.recipe import Recipe, RecipeError
from aligngpt.training.run import train
from aligngpt.training.setup.loading import load_model
from aligngpt.training.stage import model_folder

TinyRecipe = Callable[..., Recipe]


def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_file(model_folder(recipe) / "model.safetensors")


def lines(recipe: Recipe) -> list[dict[str, Any]]:
    path = Path(recipe.output) / "instruct" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_first_stage_leaves_no_model_in_memory(tiny_recipe: TinyRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[torch.nn.Module]] = []

    def load(*args: Any, **kwargs: Any) -> Any:
        assert not [one for one in loaded if one() is not None]
        model, processor = load_model(*args, **kwargs)
        loaded.append(weakref.ref(model))
        return model, processor

    monkeypatch.setattr(stage_run, "load_model", load)
    train(tiny_recipe("llama"))
    assert len(loaded) == 2


@pytest.mark.medium
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_recomputing_every_second_layer_leaves_every_bit_of_a_run(
    tiny_recipe: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str, lora: dict[str, Any] | None
) -> None:
    found = {}
    asked: list[int] = []
    original = torch.utils.checkpoint.checkpoint

    def counted(function: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(1)
        return original(function, *args, **kwargs)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", counted)
    times = {}
    for value in (False, 2, True):
        asked.clear()
        options = {"instruct__packing": packing, "instruct__lora": lora, "pretrain": None}
        recipe = tiny_recipe(
            "llama", output=str(tmp_path / str(value)), instruct__gradient_checkpointing=value, **options
        )
        train(recipe)
        found[value] = [line["loss"] for line in lines(recipe)], weights(recipe)
        times[value] = len(asked)
    assert times[False] == 0 < times[2] < times[True]
    for value in (2, True):
        assert found[value][0] == found[False][0]
        for name, tensor in found[False][1].items():
            assert torch.equal(found[value][1][name], tensor), (value, name)


@pytest.mark.medium
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
@pytest.mark.parametrize("save_dtype", ["trained", "float32", "bfloat16"])
def test_the_model_is_saved_in_the_precision_asked_for(
    tiny_recipe: TinyRecipe, save_dtype: str, lora: dict[str, Any] | None
) -> None:
    recipe = tiny_recipe("llama", pretrain=None, instruct__save_dtype=save_dtype, instruct__lora=lora)
    train(recipe)
    expected = torch.bfloat16 if save_dtype == "bfloat16" else torch.float32
    assert {tensor.dtype for tensor in weights(recipe).values()} == {expected}
    loaded = AutoModelForImageTextToText.from_pretrained(model_folder(recipe))
    assert loaded.dtype == expected and {one.dtype for one in loaded.parameters()} == {expected}
    card = " ".join((model_folder(recipe) / "README.md").read_text().split())
    said = f"The weights were trained in float32 and are saved in {save_dtype}."
    assert (said in card) is (save_dtype != "trained")


def test_a_precision_without_a_model_is_refused(tiny_recipe: TinyRecipe) -> None:
    with pytest.raises(RecipeError, match=r"pretrain\.save_dtype: only instruction tuning"):
        tiny_recipe(pretrain__save_dtype="bfloat16")
    with pytest.raises(RecipeError, match=r"save_dtype is about a whole model, but lora\.merge is false"):
        tiny_recipe(instruct__save_dtype="bfloat16", instruct__lora={"rank": 2, "merge": False})


def test_frozen_weights_held_low_are_saved_as_they_were_read(tiny_recipe: TinyRecipe) -> None:
    recipe = tiny_recipe("llama", pretrain=None, instruct__precision="bfloat16")
    source, _ = load_model(recipe, "instruct")
    expected = {name: one.detach().clone() for name, one in source.named_parameters()}
    train(recipe)
    found = weights(recipe)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    towers = [name for name in expected if "vision_tower" in name]
    saved = AutoModelForImageTextToText.from_pretrained(model_folder(recipe)).state_dict()
    assert towers and all(torch.equal(saved[name], expected[name]) for name in towers)
    # What trained has the precision it trained in: rounding it to bfloat16 changes it.
    trained = [name for name in expected if not torch.equal(saved[name], expected[name])]
    assert any("language_model" in name for name in trained)
    assert any(not torch.equal(saved[name], saved[name].bfloat16().float()) for name in trained)


@pytest.mark.medium
def test_weights_in_bfloat16_train_and_resume_bit_for_bit(
    tiny_recipe: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchao")
    options = {
        "pretrain": None,
        "instruct__optimizer": "adamw_torch_8bit",
        "instruct__precision": "bfloat16",
        "instruct__weight_precision": "bfloat16",
        "instruct__gradient_checkpointing": 2,
    }
    # Compiling the optimiser's step takes seconds for each shape.
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    whole = tiny_recipe("llama_wide", output=str(tmp_path / "whole"), **options)
    train(whole)
    losses = [line["loss"] for line in lines(whole)]
    assert losses[-1] < losses[0]
    stopped = tiny_recipe("llama_wide", instruct__checkpoint_minutes=1e-9, **options)

    def stop(callback: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StageCallback, "on_step_begin", stop)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    train(stopped)
    assert lines(stopped)[-1]["loss"] == losses[-1]
    found, expected = weights(stopped), weights(whole)
    assert {one.dtype for one in expected.values()} == {torch.bfloat16, torch.float32}
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    # What transformers loads has one precision, which holds every saved value.
    loaded = AutoModelForImageTextToText.from_pretrained(model_folder(whole))
    assert {one.dtype for one in loaded.parameters()} == {torch.float32}
    card = (model_folder(whole) / "README.md").read_text()
    assert "The weights are saved as they were trained" in card


@contextmanager
def gpu_of(monkeypatch: pytest.MonkeyPatch, peak: int) -> Iterator[None]:
    """A GPU's peak memory, without the GPU."""
    for module in ("aligngpt.training.stage_run", "aligngpt.training.loop.callback"):
        monkeypatch.setattr(f"{module}.peak_device_memory", lambda device: peak)
    yield


def test_the_peak_of_a_gpus_memory_is_in_metrics_result_and_card(
    tiny_recipe: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny_recipe("llama", pretrain=None, output=str(tmp_path / "plain"))
    [result] = train(plain)
    assert result.peak_device_memory is None and not any("peak_device_gb" in line for line in lines(plain))
    assert "peak GPU memory" not in (model_folder(plain) / "README.md").read_text()
    recipe = tiny_recipe("llama", pretrain=None, output=str(tmp_path / "gpu"))
    with gpu_of(monkeypatch, 3 * 2**30):
        [result] = train(recipe)
    assert result.peak_device_memory == 3 * 2**30
    assert [line["peak_device_gb"] for line in lines(recipe)] == [3.22] * 4
    card = (model_folder(recipe) / "README.md").read_text()
    assert "peak GPU memory" in card and "3.0 GiB |" in card


@pytest.fixture
def estimate(tiny_recipe: TinyRecipe) -> Callable[..., MemoryEstimate]:
    from aligngpt.training.setup.freezing import freeze_all_but
    from aligngpt.training.setup.parameter_summary import parts_of

    def make(**options: Any) -> MemoryEstimate:
        recipe = tiny_recipe("llama_wide", **{f"instruct__{name}": value for name, value in options.items()})
        stage = recipe.instruct
        assert stage is not None
        model, _ = load_model(recipe, "instruct", weights=False)
        freeze_all_but(model, stage.train)
        return MemoryEstimate(model, parts_of(model, stage), stage, (64, 8), in_bfloat16=stage.precision == "bfloat16")

    return make


def test_the_setting_that_fits_recomputes_the_fewest_layers(
    estimate: Callable[..., MemoryEstimate], monkeypatch: pytest.MonkeyPatch
) -> None:
    def eight_layers(model: object, every: bool | int) -> list[bool]:
        return [every > 0 and place % every == 0 for place in range(8)]

    monkeypatch.setattr("aligngpt.training.memory_plan.recomputed_layers", eight_layers)
    one = estimate(gradient_checkpointing=True)
    sizes = {every: sum(one.plan(every)) for every in (False, 8, 4, 2, True)}
    assert sizes[False] > sizes[8] > sizes[4] > sizes[2] > sizes[True] == sum(one.plan())
    assert one.largest_that_fits(sizes[False]) is False
    assert one.largest_that_fits(sizes[False] - 1) == 8
    assert one.largest_that_fits(sizes[8] - 1) == 4
    assert one.largest_that_fits(sizes[True]) is True
    assert one.largest_that_fits(sizes[True] - 1) is None
    assert one.advice(None) is None
    assert "gradient_checkpointing: 8 recomputes the fewest" in (one.advice(round((sizes[False] - 1) / 0.9)) or "")
    assert "too few even with" in (one.advice(sizes[True] // 2) or "")


def test_activations_are_those_of_the_tokens_in_a_pass(estimate: Callable[..., MemoryEstimate]) -> None:
    # The longest row has 64 tokens.
    four = estimate(batch_size=8, micro_batch_size=4).plan()
    assert estimate(batch_size=8, micro_batch_tokens=256).plan() == four
    assert estimate(batch_size=8, micro_batch_tokens=512).plan().activations == 2 * four.activations
    advice = estimate(micro_batch_tokens=256).advice(1000)
    assert advice is not None and "lower micro_batch_tokens or max_length" in advice


def test_logits_exist_for_one_chunk_of_tokens_at_a_time(
    estimate: Callable[..., MemoryEstimate], monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_head(rows: int, **options: Any) -> float:
        """The bytes that the logits of `rows` rows, with 8 tokens in the loss each, add."""
        one = estimate(batch_size=rows, micro_batch_size=rows, **options)
        with monkeypatch.context() as patch:
            patch.setattr("aligngpt.training.memory_plan.body_bytes", lambda *args: 0)
            return one.plan().activations

    for precision in ("float32", "bfloat16"):
        monkeypatch.setattr("aligngpt.training.memory_plan.ROWS_AT_ONCE", 1024)
        whole = of_head(8, precision=precision)
        assert of_head(16, precision=precision) == 2 * whole > 0
        monkeypatch.setattr("aligngpt.training.memory_plan.ROWS_AT_ONCE", 64)
        assert of_head(8, precision=precision) == of_head(16, precision=precision) == whole
        # A sharded head computes all logits.
        assert of_head(16, precision=precision, sharding="full") == 2 * whole
        with monkeypatch.context() as patch:
            patch.setattr("aligngpt.training.memory_plan.LOGIT_SETTINGS", ("hidden_size",))
            assert of_head(16, precision=precision) == 2 * whole


def test_recomputed_layers_count_in_the_work(estimate: Callable[..., MemoryEstimate]) -> None:
    assert [estimate(gradient_checkpointing=value).share for value in (False, 2, True)] == [0, 0.5, 1]


def test_what_is_held_in_bfloat16_takes_half(estimate: Callable[..., MemoryEstimate]) -> None:
    options = {"precision": "bfloat16", "optimizer": "adamw_torch_8bit"}
    whole = estimate(**options).plan()
    half = estimate(weight_precision="bfloat16", **options).plan()
    saved = whole.weights - half.weights
    assert 0 < saved < whole.weights / 2
    # Gradients shrink by as much, and autocast copies nothing.
    assert whole.training - half.training == 2 * saved
