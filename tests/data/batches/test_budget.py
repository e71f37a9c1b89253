"""Micro-batches limited by tokens."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from aligngpt.data.batches.budget import StepCollator, TokenBudget, fill_up, row_tokens, within_budget
from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.examples import Example, Row
from aligngpt.data.batches.layouts import WithLayout, layout_of
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.model.packing.attention import NAME


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_in_one_micro_batch_within_the_budget(packed: bool, seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.randint(1, 700) for _ in range(draw.randint(1, 80))]
    parts = within_budget(lengths, 512, packed=packed)
    assert sorted(place for part in parts for place in part) == list(range(len(lengths)))
    assert lengths[parts[0][0]] == max(lengths)
    for part in parts:
        sizes = [lengths[place] for place in part]
        assert len(part) == 1 or (sum(sizes) if packed else len(sizes) * max(sizes)) <= 512


def test_rows_fill_what_is_left() -> None:
    assert within_budget([2, 9, 4, 3, 6, 1], 10, packed=True) == [[1, 5], [4, 2], [3, 0]]
    assert within_budget([2, 9, 4, 3, 6, 1], 10, packed=False) == [[1], [4], [2, 3], [0, 5]]
    assert within_budget([12, 12], 10, packed=True) == [[0], [1]]
    assert within_budget([], 10, packed=True) == within_budget([], 10, packed=False) == []


def row(config: Any, *, image: bool = True, answers: int = 1, words: int = 3, level: int | None = None) -> Row:
    """A row of samples that share an image, their questions of different lengths."""
    start = [1, *([config.align_token_index, *[config.image_token_index] * 16] if image else [])]
    examples = []
    for number in range(answers):
        text = [*start, *range(5, 5 + words + number)]
        pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(words)) if image else None
        labels = [IGNORE_INDEX] * len(text) + [8, 9]
        examples.append(Example([*text, 8, 9], labels, pixels, level if image else None, f"{words}-{number}"))
    return tuple(examples)


@pytest.mark.parametrize("answers", [1, 3])
def test_the_tokens_of_a_row_are_those_it_is_collated_to(assembled: Callable, answers: int) -> None:
    model, _ = assembled("llama")
    one = row(model.config, answers=answers)
    assert row_tokens(one) == Collator(0, packed=True)([one])["input_ids"].numel()


@pytest.mark.parametrize("levels", [True, False])
def test_a_row_that_is_filled_up_has_the_same_loss_and_gradients(assembled: Callable, levels: bool) -> None:
    model, _ = assembled("llama")
    model.train().requires_grad_(True)
    model.set_attn_implementation({"text_config": NAME})
    rows = [
        row(model.config, words=4, level=3 if levels else None),
        row(model.config, words=2, answers=1 if levels else 2, level=5 if levels else None),
        row(model.config, image=False),
    ]

    def trained(multiple: int) -> tuple[dict[str, Any], torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad(set_to_none=True)
        batch = WithLayout(Collator(0, packed=True, multiple=multiple), model.config)(rows)
        loss = model(**batch).loss
        loss.backward()
        return batch, loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain, expected, gradients = trained(1)
    filled, loss, found = trained(64)
    length = plain["input_ids"].numel()
    assert length % 64 and filled["input_ids"].numel() == -(-length // 64) * 64
    assert filled["layout"].tokens == plain["layout"].tokens == length
    assert filled["pieces"].samples == plain["pieces"].samples + 1
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_row_of_a_whole_multiple_is_left_alone(assembled: Callable) -> None:
    model, _ = assembled("llama")
    rows = [row(model.config)]
    length = row_tokens(rows[0])
    batch = Collator(0, packed=True, multiple=length)(rows)
    assert batch["input_ids"].numel() == length and not batch["pieces"].padded


def test_a_filled_row_stays_within_the_budget(assembled: Callable) -> None:
    model, _ = assembled("llama")
    rows = [row(model.config, words=words) for words in range(1, 30)]
    for tokens in (256, 300, 511):
        collator = Collator(0, packed=True, multiple=64)
        step = StepCollator(WithLayout(collator, model.config), TokenBudget(tokens, collator))(rows)
        sizes = [batch["input_ids"].numel() for batch in step["micro_batches"]]
        assert len(sizes) > 1 and max(sizes) <= tokens and all(size % 64 == 0 for size in sizes)


def test_processes_do_the_same_number_of_passes(assembled: Callable) -> None:
    model, _ = assembled("llama")
    model.set_attn_implementation({"text_config": NAME})
    rows = [row(model.config, words=words) for words in (3, 40)]
    collator = Collator(0, packed=True)
    collate = WithLayout(collator.with_ids, model.config)
    step = StepCollator(collate, TokenBudget(60, collator))(rows)["micro_batches"]
    assert [batch["sample_ids"] for batch in step] == [["40-0"], ["3-0"]]
    assert fill_up(step, 2) is step
    filled = fill_up(step, 4)
    assert filled[:2] == step and len(filled) == 4
    for filler in filled[2:]:
        assert torch.equal(filler["input_ids"], step[1]["input_ids"]) and filler["sample_ids"] == []
        assert len(filler["layout"].counted) == len(layout_of(filler, model.config).counted) == 0
        output = model(**{name: value for name, value in filler.items() if name != "sample_ids"})
        assert output.loss.item() == 0
    assert len(step[1]["layout"].counted) == 2
