"""Two processes that train together (gloo, on this machine) give the results of one with the same batches."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from several_processes import assert_same_weights, figures, kill_in_instruction_tuning, losses, run
from tiny_recipes import give_levels

from aligngpt.training.distributed import processes
from aligngpt.training.distributed.processes import add_up, gather, is_main_process
from aligngpt.training.recipe import Recipe
from aligngpt.training.run import train

MEASURED = ("loss", "gate", "padding", "grad_norm")

TELLS_ITS_LAST_STEP = """
import os
import sys
from pathlib import Path
from transformers import Trainer
from aligngpt.cli import main

train = Trainer.train

def train_and_tell(self, *args, **kwargs):
    result = train(self, *args, **kwargs)
    Path(sys.argv[-1]).with_name("step-" + os.environ["RANK"]).write_text(str(self.state.global_step))
    return result

Trainer.train = train_and_tell
main()
"""


@pytest.mark.medium
@pytest.mark.parametrize(
    ("checkpointing", "by_modality", "trains_tower"),
    [
        pytest.param(False, False, False, marks=pytest.mark.slow),
        (True, False, True),
        pytest.param(True, True, False, marks=pytest.mark.slow),
    ],
)
def test_two_processes_have_the_losses_and_figures_of_one(
    recipe_of: Callable[..., Recipe],
    tmp_path: Path,
    data: Path,
    checkpointing: bool,
    by_modality: bool,
    trains_tower: bool,
) -> None:
    # With activation checkpointing, DDP waits for every trained parameter in every step; a step of text uses neither
    # the gate nor the tower, and the levels of questions are ignored.
    # An epoch of the instructions has four full steps and one of five rows, an odd number.
    # The main process alone warms the projector up.
    give_levels(data)
    parts = ["vision_tower"] * trains_tower + ["language_model", "projector", "gate"]
    options = {
        "instruct__train": parts,
        "instruct__gradient_checkpointing": checkpointing,
        "instruct__group_by_modality": by_modality,
        "instruct__max_steps": 7,
        "pretrain__warm_start": {"steps": 5, "batch_size": 4, "learning_rate": 0.01},
    }
    alone, together = (recipe_of(name, **options) for name in ("one", "two"))
    train(alone)
    output = run(together, tmp_path / "two.yaml")
    for stage, steps, of_levels in (("pretrain", 4, "loss_level"), ("instruct", 7, "gate_")):
        assert losses(together, stage) == pytest.approx(losses(alone, stage), rel=1e-5), output
        lines = [figures(one, stage) for one in (alone, together)]
        assert len(lines[0]) == len(lines[1]) == steps, output
        for expected, found in zip(*lines, strict=True):
            names = {name for name in expected if name.startswith(MEASURED)}
            assert names == {name for name in found if name.startswith(MEASURED)}
            # By modality, a step of text has none of the gate.
            assert by_modality or any(name.startswith(of_levels) for name in names)
            for name in names - {"padding"}:
                assert found[name] == pytest.approx(expected[name], abs=2e-4), (stage, name)
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
    recipe = recipe_of("timed", pretrain__max_steps=100_000, pretrain__minutes=0.02, instruct=None)
    program = tmp_path / "train.py"
    program.write_text(TELLS_ITS_LAST_STEP)
    output = run(recipe, tmp_path / "timed.yaml", program)
    steps = json.loads((Path(recipe.output) / "pretrain" / "stage.json").read_text())["steps"]
    assert 1 <= steps < 100_000, output
    assert [(tmp_path / f"step-{rank}").read_text() for rank in range(2)] == [str(steps)] * 2, output


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
    monkeypatch.setattr(processes, "_together", lambda: True)
    monkeypatch.setattr(processes, "_wait_for_all", lambda: met.append(1))
    with processes.main_process_first(cpu=True):
        assert len(met) == before
    assert len(met) == 2


def test_a_launch_of_one_process_that_makes_no_group_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(processes, "PartialState", lambda **_: None)
    ran = []
    with processes.main_process_first(cpu=True):
        ran.append(1)
    assert ran == [1]
