"""The model at the start of a stage, and the checks before it begins."""

from collections.abc import Callable

import pytest

from aligngpt.training.feed.datasets import usable_length
from aligngpt.training.recipe import Recipe, RecipeError
from aligngpt.training.run import train


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
