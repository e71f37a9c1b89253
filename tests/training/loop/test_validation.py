"""Validation during training."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aligngpt.data.batches.budget import TokenBudget
from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.dataset import ConversationDataset
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import load_samples
from aligngpt.inference.engine import Engine, Request, Sampling
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.model.packing.attention import NAME
from aligngpt.training.loop.validation import Validation, right_answers
from aligngpt.training.run import train
from aligngpt.training.stage import model_folder

divide = TokenBudget.divide


def test_an_answer_is_right_to_its_last_token() -> None:
    x = IGNORE_INDEX
    labels = torch.tensor([[x, 4, 5, x, x, 6, 7], [x, x, 8, x, x, x, x], [x, x, x, x, x, 9, 9]])
    right = torch.tensor([True, False, True, True, True, False, True])
    assert right_answers(right, labels).tolist() == [False, True, True, False]


@pytest.fixture
def validation_of(data: Path) -> Callable[..., Validation]:
    def make(processor: Any, questions_per_prefix: int = 1) -> Validation:
        samples = load_samples(data / "questions.json", rejects=Rejects(None))
        dataset = ConversationDataset(samples, processor, data, questions_per_prefix=questions_per_prefix)
        return Validation(dataset, Collator(processor.tokenizer.pad_token_id), batch_size=3)

    return make


# The gate pools over a row, so only without a gate is a row of two samples equal to two rows of one.
@pytest.mark.parametrize(("alignment", "questions_per_prefix"), [("adaptive", 1), ("global", 1), ("global", 2)])
def test_it_counts_what_generation_would_answer(
    tiny_recipe: Callable, validation_of: Callable, alignment: str, questions_per_prefix: int
) -> None:
    recipe = tiny_recipe(model__alignment=alignment, instruct__max_steps=30, instruct__batch_size=8)
    train(recipe)
    engine = Engine.load(model_folder(recipe), dtype="float32")
    engine.model.train()
    validation = validation_of(engine.processor, questions_per_prefix)
    measured = validation.measure(engine.model)
    assert engine.model.training
    engine.model.eval()
    samples = validation.dataset.samples
    requests = [Request(sample.messages()[:-1], tuple(_pictures(validation, sample))) for sample in samples]
    answers = [engine.answer([request], Sampling(max_new_tokens=8))[0] for request in requests]
    right = [
        answer.text == sample.turns[-1].text and answer.stopped for answer, sample in zip(answers, samples, strict=True)
    ]
    assert 0 < sum(right) < len(right)
    assert measured.accuracy == pytest.approx(sum(right) / len(right))


def test_the_loss_is_the_mean_over_all_tokens(assembled: Callable, validation_of: Callable) -> None:
    model, processor = assembled("qwen2")
    validation = validation_of(processor)
    batch = validation.collator([validation.dataset[place] for place in range(len(validation.dataset))])
    with torch.no_grad():
        expected = model(**batch).loss.item()
    assert validation.measure(model).loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_passes_limited_by_tokens_measure_the_same(
    assembled: Callable, validation_of: Callable, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    model, processor = assembled("qwen2")
    by_rows = validation_of(processor)
    expected = by_rows.measure(model)
    collator = Collator(processor.tokenizer.pad_token_id, packed=packed, multiple=16 if packed else 1)
    if packed:
        model.set_attn_implementation({"text_config": NAME})
    passes: list[int] = []
    budget = TokenBudget(64, collator)
    monkeypatch.setattr(TokenBudget, "divide", lambda *given: passes.append(len(made := divide(*given))) or made)
    found = replace(by_rows, collator=collator, batch_size=9, budget=budget).measure(model)
    assert len(passes) == 3 and max(passes) > 2
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.accuracy == expected.accuracy
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)


@pytest.mark.medium
def test_a_stage_is_looked_at_while_it_trains_and_at_its_end(tiny_recipe: Callable, data: Path) -> None:
    looks = {"data": str(data / "questions.json"), "minutes": 1e-9, "samples": 6}
    recipe = tiny_recipe(instruct__validation=looks, pretrain__precision="bfloat16")
    plain = tiny_recipe(output=str(Path(recipe.output).with_name("plain")), pretrain__precision="bfloat16")
    train(recipe)
    train(plain)
    lines = [json.loads(line) for line in (Path(recipe.output) / "instruct" / "metrics.jsonl").read_text().splitlines()]
    looked = [line for line in lines if "validation_accuracy" in line]
    assert [line["step"] for line in looked] == [1, 2, 3, 4]
    assert all(0 <= line["validation_accuracy"] <= 1 for line in looked)
    # Validation does not change training.
    losses = [line["loss"] for line in lines if "loss" in line]
    others = (Path(plain.output) / "instruct" / "metrics.jsonl").read_text().splitlines()
    assert losses == [json.loads(line)["loss"] for line in others]


def _pictures(validation: Validation, sample: Any) -> list:
    from aligngpt.data.images.opening import open_image

    return [open_image(validation.dataset.root_of(0) / name) for name in sample.images]
