"""Language models that cannot pack rows, or cannot put several questions about an image in one, are detected."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from tiny_models import Assembled

from aligngpt.model.packing.leaks import can_pack
from aligngpt.training.recipe import RecipeError
from aligngpt.training.setup.row_attention import check_rows_can_branch

BRANCHING = SimpleNamespace(questions_per_prefix=3, max_length=128)


@pytest.mark.parametrize("name", ["lfm2", "minimax", "zaya", "mpt", "gpt_neo", "bloom", "falcon_alibi", "gpt1"])
def test_questions_cannot_share_a_picture_where_they_would_see_each_other(
    with_language: Callable[..., Assembled], name: str
) -> None:
    model, _ = with_language(name)
    with pytest.raises(RecipeError, match=r"questions_per_prefix is 3, but the language model .*; set it to 1"):
        check_rows_can_branch(model, BRANCHING)
    assert not can_pack(model.model.language_model, BRANCHING.max_length)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_questions_share_a_picture_and_rows_are_packed_where_attention_allows_it(
    with_language: Callable[..., Assembled], dtype: torch.dtype
) -> None:
    model, _ = with_language("llama", dtype)
    check_rows_can_branch(model, BRANCHING)
    assert can_pack(model.model.language_model, BRANCHING.max_length)


def test_only_what_limits_attention_is_taken_for_a_window(with_language: Callable[..., Assembled]) -> None:
    """`sliding_window_pattern` says which layers have a window, `index_topk` how many tokens a layer selects."""
    model, _ = with_language("exaone4")
    check_rows_can_branch(model, BRANCHING)
    assert can_pack(model.model.language_model, BRANCHING.max_length)
    model, _ = with_language("deepseek_v32")
    with pytest.raises(RecipeError, match="deepseek_v32 attends over 40 tokens only"):
        check_rows_can_branch(model, BRANCHING)


def test_a_state_is_found_in_half_precision(with_language: Callable[..., Assembled]) -> None:
    model, _ = with_language("lfm2", torch.bfloat16)
    with pytest.raises(RecipeError, match="lfm2 gives different outputs for questions that share an image"):
        check_rows_can_branch(model, BRANCHING)
    assert not can_pack(model.model.language_model, BRANCHING.max_length)


@pytest.mark.parametrize("name", ["falcon", "falcon_grouped"])
def test_a_language_model_that_passes_the_packed_attention_by_is_padded(
    with_language: Callable[..., Assembled], name: str
) -> None:
    model, _ = with_language(name)
    assert not can_pack(model.model.language_model, BRANCHING.max_length)
