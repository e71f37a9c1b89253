"""Metrics of a run: tokens, padding, gate weights and loss per level match the batches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.examples import Example
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.model.packing.attention import NAME
from aligngpt.training.loop import metrics as module
from aligngpt.training.loop.metrics import StepMetrics


def rows_of(model: Any, levels: bool) -> list[tuple[Example, ...]]:
    config = model.config
    image = [config.align_token_index, *[config.image_token_index] * 16]
    pixels = torch.rand(1, 3, 32, 32)

    def row(words: int, answer: list[int], level: int | None) -> tuple[Example, ...]:
        prompt = [1, *(image if level != 0 else []), *[5] * words]
        picture = pixels if level != 0 else None
        return (Example(prompt + answer, [IGNORE_INDEX] * len(prompt) + answer, picture, level or None),)

    if levels:
        # The last sample has no image, and therefore no level.
        return [row(3, [6, 7], 2), row(1, [8, 9, 10], 5), row(6, [4], 2), row(2, [5, 6], 0)]
    return [row(3, [6, 7], None), row(1, [8, 9, 10], None), row(9, [4], 0)]


@pytest.fixture(params=[False, True], ids=["padded", "packed"])
def seen(
    request: pytest.FixtureRequest, assembled: Callable, monkeypatch: pytest.MonkeyPatch
) -> Callable[[bool], tuple[Any, list, Any, dict]]:
    def make(levels: bool) -> tuple[Any, list, Any, dict]:
        model, processor = assembled("llama")
        model.train()
        if request.param:
            model.set_attn_implementation({"text_config": NAME})
        rows = rows_of(model, levels)
        batch = Collator(processor.tokenizer.pad_token_id, packed=request.param)(rows)
        output = model(**batch)
        metrics = StepMetrics(model.config)
        metrics.update(batch, output)
        metrics.wait(0.5)
        # As if the interval had taken two seconds.
        monkeypatch.setattr(module.time, "monotonic", lambda: metrics.started + 2)
        return model, rows, output, metrics.compute()

    return make


def test_tokens_and_padding_are_counted(seen: Callable) -> None:
    model, rows, _, figures = seen(False)
    lengths = [len(row[0].input_ids) for row in rows]
    packed = model.config.text_config._attn_implementation == NAME
    padding = 0 if packed else 1 - sum(lengths) / (3 * max(lengths))
    assert figures["padding"] == pytest.approx(padding, abs=1e-4)
    assert figures["tokens_per_second"] == pytest.approx(sum(lengths) / 2, abs=0.05)
    assert figures["waiting"] == 0.25


def test_the_gate_is_that_of_samples_with_an_image(seen: Callable) -> None:
    _, _, output, figures = seen(False)
    weights = output.alignment_weights[:2].detach()
    found = torch.tensor([figures[f"gate_{level}"] for level in range(1, 8)])
    torch.testing.assert_close(found, weights.mean(dim=0), rtol=0, atol=1e-4)
    entropy = -(weights * weights.log()).sum(dim=-1).mean()
    assert figures["gate_entropy"] == pytest.approx(entropy.item(), abs=1e-4)
    assert not any(name.startswith("loss_level") for name in figures)


def test_the_loss_of_each_level_is_the_mean_over_its_tokens(seen: Callable) -> None:
    model, rows, _, figures = seen(True)
    expected: dict[str, list[float]] = {}
    model.set_attn_implementation({"text_config": "sdpa"})
    for row in rows[:3]:
        batch = Collator(0)([row])
        counted = batch["labels"][:, 1:] != IGNORE_INDEX
        logits = model.eval()(**batch).logits[:, :-1][counted]
        losses = F.cross_entropy(logits, batch["labels"][:, 1:][counted], reduction="none")
        expected.setdefault(str(row[0].level), []).extend(losses.tolist())
    assert {name for name in figures if name.startswith("loss_level")} == {"loss_level_2", "loss_level_5"}
    for level, losses in expected.items():
        assert figures[f"loss_level_{level}"] == pytest.approx(sum(losses) / len(losses), abs=1e-3)
    assert "gate_1" not in figures


def test_figures_begin_anew_each_time(assembled: Callable) -> None:
    metrics = StepMetrics(assembled("llama")[0].config)
    metrics.wait(1e6)
    assert metrics.compute()["waiting"] == 1
    assert metrics.compute()["waiting"] == 0


def test_padding_is_told_from_tokens_where_rows_have_branches(assembled: Callable) -> None:
    model, processor = assembled("llama")
    pixels = torch.rand(1, 3, 32, 32)
    image = [model.config.align_token_index, *[model.config.image_token_index] * 16]
    row = tuple(
        Example([1, *image, 5, *[6] * words], [IGNORE_INDEX] * 19 + [6] * words, pixels, None) for words in (1, 4)
    )
    batch = Collator(processor.tokenizer.pad_token_id)([row, (row[0],)])
    metrics = StepMetrics(model.config)
    metrics.update(batch, model.train()(**batch))
    length = batch["input_ids"].shape[1]
    assert metrics.compute()["padding"] == pytest.approx(1 - (length + 20) / (2 * length), abs=1e-4)
