"""Losses that are not finite are found at once, or, on a GPU, one step late but before anything is saved."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aligngpt.errors import AlignGPTError
from aligngpt.training.loop import loss_watch as module
from aligngpt.training.loop.loss_watch import LossWatch
from aligngpt.training.run import train


class Arrival:
    """An event of a GPU."""

    waited = 0

    def synchronize(self) -> None:
        Arrival.waited += 1


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies take a while to arrive, as those of a GPU do."""

    def begin(losses: Tensor) -> tuple[Tensor, Arrival]:
        return losses.clone(), Arrival()

    monkeypatch.setattr(module, "_begin_copy", begin)


def steps(watch: LossWatch, *losses: tuple[float, ...]) -> list[object]:
    found = []
    for step, of_step in enumerate(losses):
        for place, loss in enumerate(of_step):
            watch.see(torch.tensor(loss), [f"{step}.{place}"])
        watch.end_step(step)
        found.append(watch.next())
    return found


def test_losses_are_read_at_once() -> None:
    one, two = steps(LossWatch(), (1.0, 2.0), (1.0, math.inf))
    assert one == (0, [])
    assert two == (1, [(math.inf, ["1.1"])])


@pytest.mark.usefixtures("late")
def test_losses_of_a_gpu_are_read_once_it_has_the_next_step() -> None:
    watch = LossWatch()
    before = Arrival.waited
    none, one = steps(watch, (math.inf, 2.0), (1.0, -math.inf))
    assert none is None
    assert one == (0, [(math.inf, ["0.0"])])
    assert Arrival.waited == before + 1
    assert list(watch.rest()) == [(1, [(-math.inf, ["1.1"])])]
    assert list(watch.rest()) == []


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("log_steps", [1, 3, 100])
def test_a_late_loss_names_its_own_step_and_samples(
    tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch, log_steps: int
) -> None:
    see, seen = LossWatch.see, []

    def broken(self: LossWatch, loss: Tensor, ids: list[str]) -> None:
        seen.append(ids)
        see(self, loss * (math.nan if len(seen) == 3 else 1), ids)

    monkeypatch.setattr(LossWatch, "see", broken)
    recipe = tiny_recipe(pretrain__max_steps=6, pretrain__log_steps=log_steps)
    with pytest.raises(AlignGPTError, match="the loss is nan after step 2;"):
        train(recipe, ["pretrain"])
    folder = Path(recipe.output) / "pretrain"
    assert json.loads((folder / "stopped.json").read_text())["samples"] == seen[2]
    # With a log at every step, the loss is looked at before the line of its own step is written.
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    assert len(lines) == (2 if log_steps == 1 else 0)


@pytest.mark.usefixtures("late")
def test_nothing_is_saved_after_a_late_loss(tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    see = LossWatch.see
    monkeypatch.setattr(LossWatch, "see", lambda self, loss, ids: see(self, loss * math.nan, ids))
    recipe = tiny_recipe(pretrain__max_steps=6, pretrain__log_steps=100, pretrain__checkpoint_minutes=1e-9)
    with pytest.raises(AlignGPTError, match="the loss is nan after step 0;"):
        train(recipe, ["pretrain"])
    assert not list((Path(recipe.output) / "pretrain" / "checkpoints").glob("checkpoint-*"))
