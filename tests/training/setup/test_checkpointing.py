"""Recomputing every n-th layer changes no gradient, and the layers are those that the estimate counts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aligngpt.data.batches.collate import Collator
from aligngpt.data.rejects import Rejects
from aligngpt.training.feed.datasets import training_data, training_samples
from aligngpt.training.recipe import Recipe, RecipeError
from aligngpt.training.setup.checkpointing import checkpointing_arguments, recomputed_layers
from aligngpt.training.setup.compiling import layers_of
from aligngpt.training.setup.freezing import freeze_all_but
from aligngpt.training.setup.loading import load_model
from aligngpt.training.setup.row_attention import decide_packing


def gradients(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)  # Of the adapters' dropout.
    model(**batch).loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.1}])
@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_no_bit_of_a_gradient_depends_on_the_recomputed_layers(
    tiny_recipe: Callable[..., Recipe], packing: str, lora: dict[str, Any] | None
) -> None:
    recipe = tiny_recipe("llama", pretrain=None, instruct__packing=packing, instruct__lora=lora)
    stage = recipe.instruct
    assert stage is not None
    model, processor = load_model(recipe, "instruct")
    freeze_all_but(model, stage.train)
    packed = decide_packing(model, recipe, stage, model.device, torch.float32)
    assert packed is (packing == "packed")
    samples = training_samples(recipe, "instruct", Rejects(None, max_share=0.0))
    dataset = training_data(samples, recipe, "instruct", model, processor)
    batch = dict(Collator(processor.tokenizer.pad_token_id, packed=packed)([dataset[place] for place in range(4)]))
    model.train()
    expected = gradients(model, batch)
    assert expected
    for every in (1, 2):
        model.activation_checkpointing_enable(every_n_layers=every)
        found = gradients(model, batch)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.equal(found[name], gradient), (every, name)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("tower", ["clip", "dinov2"])
def test_the_layers_are_those_that_transformers_recomputes(assembled: Callable, tower: str, every: int) -> None:
    model, _ = assembled("llama", tower)
    expected = recomputed_layers(model, every)
    model.activation_checkpointing_enable(every_n_layers=every)
    assert expected == [layer.gradient_checkpointing for layer in layers_of(model)]
    assert recomputed_layers(model, True) == [True] * len(expected)
    assert recomputed_layers(model, False) == [False] * len(expected)


def test_the_trainer_gets_the_number(tiny_recipe: Callable[..., Recipe]) -> None:
    def of(value: bool | int) -> dict[str, Any]:
        stage = tiny_recipe(instruct__gradient_checkpointing=value).instruct
        assert stage is not None and stage.gradient_checkpointing is value
        return checkpointing_arguments(stage)

    assert of(False) == {"activation_checkpointing": False}
    assert of(True) == {"activation_checkpointing": True}
    assert of(3) == {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every_n_layers": 3}}
    with pytest.raises(RecipeError, match="gradient_checkpointing"):
        tiny_recipe(instruct__gradient_checkpointing=-2)


def test_a_model_that_recomputes_all_layers_or_none_is_refused(
    assembled: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = assembled("llama")
    monkeypatch.setattr("aligngpt.training.setup.checkpointing.GradientCheckpointingLayer", torch.nn.LSTM)
    with pytest.raises(RecipeError, match="gradient_checkpointing is 2, but the language model llama recomputes all"):
        recomputed_layers(model, 2)
    assert all(recomputed_layers(model, True))
