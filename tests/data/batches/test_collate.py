"""Tests of batches: padding, branches that share a prefix, and the resulting loss and gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aligngpt.data.batches.collate import Collator, branch_mask, common_prefix
from aligngpt.data.batches.examples import Example, Row, tokenize
from aligngpt.data.records.sample import Sample, Turn
from aligngpt.model.modeling import IGNORE_INDEX

QUESTIONS = [("what colour is it ?", "red"), ("is there a big circle in this picture ?", "yes"), ("how many ?", "two")]


def example(processor: Any, question: str, answer: str, pixels: Tensor | None, level: int | None = None) -> Example:
    images = () if pixels is None else ("a.png",)
    turns = (Turn("user", question), Turn("assistant", answer))
    return Example(*tokenize(Sample("0", turns, images).messages(), processor), pixels, level)


@pytest.fixture
def rows(assembled: Callable) -> Callable[..., list[Row]]:
    """Rows with the given numbers of questions about an image; 0 for a text-only row."""

    def make(processor: Any, *sizes: int) -> list[Row]:
        made = []
        for size in sizes:
            pixels = torch.randn(1, 3, 32, 32) if size else None
            made.append(tuple(example(processor, *QUESTIONS[n % 3], pixels) for n in range(max(1, size))))
        return made

    return make


def test_padding_is_on_the_right_and_not_attended(assembled: Callable, rows: Callable) -> None:
    _, processor = assembled("qwen2")
    batch = Collator(pad_token_id=0)(rows(processor, 1, 0))
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    assert lengths[1] < lengths[0] == batch["input_ids"].shape[1]
    assert (batch["input_ids"][1, lengths[1] :] == 0).all()
    assert (batch["labels"][1, lengths[1] :] == IGNORE_INDEX).all()
    assert batch["pixel_values"].shape[0] == 1
    assert "alignment_level" not in batch


def test_a_label_equal_to_the_padding_counts(assembled: Callable) -> None:
    _, processor = assembled("llama_tied")  # its end-of-turn token is also its padding token
    end = processor.tokenizer.pad_token_id
    batch = Collator(end)([(example(processor, "is it ?", "yes", None),)])
    assert end in batch["labels"]


def test_levels_go_with_images(assembled: Callable) -> None:
    _, processor = assembled("qwen2")
    pixels = torch.randn(1, 3, 32, 32)
    with_level = (example(processor, "", "red", pixels, level=3),)
    text = (example(processor, "hello", "yes", None),)
    assert Collator(0)([with_level, text])["alignment_level"].tolist() == [3, 1]
    with pytest.raises(ValueError, match="some samples have an alignment level"):
        Collator(0)([with_level, (example(processor, "", "red", pixels),)])


def test_a_prefix_ends_before_what_predicts_an_answer() -> None:
    first, second = (
        Example([1, 2, 3, 4], [IGNORE_INDEX, IGNORE_INDEX, 3, 4], None, None),
        Example([1, 2, 3, 9], [IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 9], None, None),
    )
    assert common_prefix((first, second)) == 1
    other = Example([1, 7, 3, 9], [IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 9], None, None)
    assert common_prefix((other, second)) == 1
    assert common_prefix((Example([5], [5], None, None), second)) == 0


def test_a_branch_sees_the_prefix_and_itself() -> None:
    mask = branch_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0, 0]
    assert mask.long().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("alignment", ["global", "mean", "none"])
@pytest.mark.parametrize("language", ["qwen2", "llama_tied"])
def test_branches_learn_what_their_samples_do_alone(
    assembled: Callable, rows: Callable, language: str, alignment: str, attention: str
) -> None:
    model, processor = assembled(language, alignment=alignment)
    model.set_attn_implementation(attention)
    collate = Collator(processor.tokenizer.pad_token_id)
    made = rows(processor, 3, 1, 2, 0)
    singles = [(one,) for row in made for one in row]
    losses, gradients = [], []
    for part in (made, singles):
        model.zero_grad()
        batch = collate(part)
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_branches_share_one_gate_that_reads_all_their_instructions(assembled: Callable, rows: Callable) -> None:
    model, processor = assembled("qwen2")
    (row,) = rows(processor, 3)
    batch = Collator(0)([row])
    assert batch["position_ids"].max() < batch["input_ids"].shape[1] - 1
    weights = model(**batch).alignment_weights
    ids, instructs = batch["input_ids"][0], batch["instruction_mask"][0].bool()
    answers = batch["labels"][0] != IGNORE_INDEX
    assert not (instructs & answers).any()
    config = model.config
    read = instructs & (ids != config.image_token_index) & (ids != config.align_token_index)
    text = model.get_input_embeddings().weight[ids[read]].mean(dim=0)
    image = model.model.get_image_features(batch["pixel_values"]).pooler_output[0]
    torch.testing.assert_close(weights[0], model.model.alignment.gate_weights(image @ text))
    # A sample gives the same result in a row of its own and in a batch with others.
    alone = model(**Collator(0)([row[:1]])).alignment_weights
    beside = model(**Collator(0)([row, row[:1]])).alignment_weights
    torch.testing.assert_close(beside, torch.cat([weights, alone]))
