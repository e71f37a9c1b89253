"""Steps divided into micro-batches by tokens train as those divided by rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from several_processes import assert_same_weights, losses, run

from aligngpt.data.batches.budget import MICRO_BATCHES, StepCollator, TokenBudget
from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.dataset import row_lengths
from aligngpt.data.rejects import Rejects
from aligngpt.training.feed.datasets import training_data, training_samples
from aligngpt.training.feed.sampler import BalancedSampler
from aligngpt.training.recipe import Recipe
from aligngpt.training.run import train
from aligngpt.training.setup.loading import load_model

TOKENS = 256


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The tokens of the micro-batches of each step."""
    found: list[list[int]] = []
    collate = StepCollator.__call__

    def noted(self: StepCollator, rows: Any) -> dict[str, Any]:
        batch = collate(self, rows)
        found.append([one["input_ids"].numel() for one in batch[MICRO_BATCHES]])
        return batch

    monkeypatch.setattr(StepCollator, "__call__", noted)
    return found


def in_tokens(**changes: Any) -> dict[str, Any]:
    """The options of both stages, with `micro_batch_tokens`."""
    options = {"micro_batch_size": None, "micro_batch_tokens": TOKENS} | changes
    return {f"{stage}__{name}": value for stage in ("pretrain", "instruct") for name, value in options.items()}


@pytest.mark.parametrize(
    ("packing", "multiple"),
    [("padded", 1), pytest.param("packed", 1, marks=pytest.mark.slow), ("packed", 32)],
)
def test_steps_by_tokens_are_those_by_rows(
    tiny_recipe: Callable[..., Recipe],
    tmp_path: Path,
    passes: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    packing: str,
    multiple: int,
) -> None:
    def collators(stage: Any, pad: int, _: Any, *, packed: bool) -> tuple[Collator, TokenBudget | None]:
        collator = Collator(pad, packed=packed, multiple=multiple)
        return collator, TokenBudget(stage.micro_batch_tokens, collator) if stage.micro_batch_tokens else None

    monkeypatch.setattr("aligngpt.training.stage_run.collators_of", collators)
    options = {"instruct__batch_size": 24, "pretrain__batch_size": 12, "instruct__packing": packing}
    by_rows = tiny_recipe(output=str(tmp_path / "rows"), **options)
    train(by_rows)
    assert passes == []
    by_tokens = tiny_recipe(output=str(tmp_path / "tokens"), **options, **in_tokens())
    train(by_tokens)
    # The last step of an epoch has one row.
    assert len(passes) == 8 and max(len(sizes) for sizes in passes) > 2
    assert all(size <= TOKENS and (packing == "padded" or size % multiple == 0) for sizes in passes for size in sizes)
    for stage in ("pretrain", "instruct"):
        assert losses(by_tokens, stage) == pytest.approx(losses(by_rows, stage), rel=1e-5)
    assert_same_weights(by_tokens, by_rows)


@pytest.mark.medium
@pytest.mark.parametrize("sharding", ["full", pytest.param("none", marks=pytest.mark.slow)])
def test_processes_with_unequal_numbers_of_micro_batches_train_as_one(
    tiny_recipe: Callable[..., Recipe], data: Path, tmp_path: Path, sharding: str
) -> None:
    """Rows are shared out by an estimate of their tokens, which these words mislead."""
    records = json.loads((data / "questions.json").read_text())
    for number in range(30):
        long, many = "x" * 100, " ".join("is it red ?" for _ in range(5 + number % 9))
        records.append({"question": many if number % 2 else long, "answer": "yes"})
    (data / "questions.json").write_text(json.dumps(records))
    options = {"instruct__batch_size": 24, "pretrain": None, "instruct__packing": "packed", "instruct__max_steps": 4}
    tokens = {"instruct__micro_batch_tokens": TOKENS, "instruct__sharding": sharding}
    alone = tiny_recipe(output=str(tmp_path / "alone"), **options)
    shared = tiny_recipe(output=str(tmp_path / "shared"), **options, **tokens)
    numbers = passes_of(shared, processes=2)
    assert any(one != other for one, other in numbers) and max(max(pair) for pair in numbers) > 1
    train(alone)
    output = run(shared, tmp_path / "shared.yaml")
    assert losses(shared, "instruct") == pytest.approx(losses(alone, "instruct"), rel=1e-5), output
    assert_same_weights(shared, alone)


def passes_of(recipe: Recipe, processes: int) -> list[tuple[int, ...]]:
    """The number of micro-batches that each process has of each step."""
    stage = recipe.instruct
    assert stage is not None and stage.micro_batch_tokens is not None
    model, processor = load_model(recipe, "instruct")
    dataset = training_data(training_samples(recipe, "instruct", Rejects(None)), recipe, "instruct", model, processor)
    each = stage.batch_size // processes
    order = list(BalancedSampler(row_lengths(dataset), each, processes, recipe.seed, processes=processes))
    budget = TokenBudget(stage.micro_batch_tokens, Collator(0, packed=True))
    shares = [order[start : start + each] for start in range(0, len(order), each)]
    counts = [len(budget.divide([dataset[place] for place in share])) for share in shares]
    return list(zip(*[iter(counts)] * processes, strict=True))
