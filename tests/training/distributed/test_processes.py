"""Two processes that train together (gloo, on this machine) give the results of one with the same batches."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from several_processes import assert_same_weights, figures, kill_in_instruction_tuning, losses, run

from aligngpt.training.distributed import processes
from aligngpt.training.distributed.processes import add_up, gather, is_main_process
from aligngpt.training.recipe import Recipe
from aligngpt.training.run import train


@pytest.mark.medium
@pytest.mark.parametrize(
    ("checkpointing", "by_modality"),
    [
        pytest.param(False, False, marks=pytest.mark.slow),
        (True, False),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_two_processes_have_the_losses_of_one(
    recipe_of: Callable[..., Recipe], tmp_path: Path, checkpointing: bool, by_modality: bool
) -> None:
    # With activation checkpointing, DDP waits for every trained parameter in every step; a step of text uses no gate.
    # An epoch of the instructions has four full steps and one of five rows, an odd number.
    # The main process alone warms the projector up.
    warm = {"steps": 5, "batch_size": 4, "learning_rate": 0.01}
    options = {
        "instruct__gradient_checkpointing": checkpointing,
        "instruct__group_by_modality": by_modality,
        "instruct__max_steps": 7,
        "pretrain__warm_start": warm,
    }
    alone, together = (recipe_of(name, **options) for name in ("one", "two"))
    train(alone)
    output = run(together, tmp_path / "two.yaml")
    for stage in ("pretrain", "instruct"):
        assert losses(together, stage) == pytest.approx(losses(alone, stage), rel=1e-5), output
    assert_same_weights(together, alone)
    assert output.count("language model") == 2, "the main process alone shows what trains"


@pytest.mark.slow
def test_two_processes_that_are_killed_end_as_two_that_were_not(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The weights and metrics are equal, even if the kill comes within a log interval."""
    options = {"pretrain": None, "instruct__max_steps": 24, "instruct__learning_rate": 1e-3, "instruct__log_steps": 7}
    whole = recipe_of("whole", **options)
    run(whole, tmp_path / "whole.yaml")
    recipe = recipe_of("killed", instruct__checkpoint_minutes=1e-9, **options)
    kill_in_instruction_tuning(recipe, tmp_path / "killed.yaml")
    output = run(recipe, tmp_path / "killed.yaml")
    assert "resuming at step" in output
    found, expected = (figures(one, "instruct") for one in (recipe, whole))
    assert [line["step"] for line in found] == [line["step"] for line in expected] == [7, 14, 21, 24], output
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=2e-4), output
    assert_same_weights(recipe, whole)


@pytest.mark.medium
def test_minutes_end_both_at_the_same_step(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of("timed", pretrain__max_steps=100_000, pretrain__minutes=0.05, instruct=None)
    output = run(recipe, tmp_path / "timed.yaml")
    result = json.loads((Path(recipe.output) / "pretrain" / "stage.json").read_text())
    assert 1 <= result["steps"] < 100_000, output


def test_one_process_decides_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert is_main_process()
    assert add_up(torch.tensor([1.5]), torch.device("cpu")).tolist() == [1.5]
    assert gather([3]) == [3]
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()


@pytest.mark.parametrize(("rank", "local_rank", "before"), [(0, 0, 0), (1, 1, 2), (8, 0, 1), (9, 1, 2)])
def test_one_process_of_each_machine_goes_before_its_others(
    monkeypatch: pytest.MonkeyPatch, rank: int, local_rank: int, before: int
) -> None:
    """All processes meet twice: after the main one is done, and after the first of each other machine is."""
    met: list[int] = []
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr(processes, "PartialState", lambda **_: None)
    monkeypatch.setattr(processes, "_wait_for_all", lambda: met.append(1))
    with processes.main_process_first(cpu=True):
        assert len(met) == before
    assert len(met) == 2
