"""Two processes that train together (gloo, on this machine) do what one does with the same batches."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sharded_steps import batch_of
from transformers import AutoModelForImageTextToText

from aligngpt.training.leaving import model_folder
from aligngpt.training.processes import is_main_process, of_main_process
from aligngpt.training.recipe import Recipe, RecipeError
from aligngpt.training.run import train

SECONDS = 120
MACHINES = {"sharding": "hybrid", "micro_batch_size": 1}


def start(recipe: Recipe, path: Path, launch: Sequence[str] = ("--standalone",)) -> subprocess.Popen:
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", *launch]
    program = str(Path(sys.executable).with_name("aligngpt"))
    return subprocess.Popen(
        [sys.executable, *launch, program, "train", str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(recipe: Recipe, path: Path) -> str:
    """Train on two processes. What counts is what they leave: gloo sometimes aborts when all is done."""
    process = start(recipe, path)
    output, _ = process.communicate(timeout=SECONDS)
    return output


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def kill_in_instruction_tuning(recipe: Recipe, path: Path) -> None:
    """Start training, and kill every process of it after a few checkpoints."""
    process = start(recipe, path)
    checkpoints = Path(recipe.output) / "instruct" / "checkpoints"
    deadline = time.monotonic() + SECONDS
    while not list(checkpoints.glob("checkpoint-[3-9]/complete.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[0]
    # Each process has a session of its own.
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.communicate()


def losses(recipe: Recipe, stage: str) -> list[float]:
    lines = (Path(recipe.output) / stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def assert_same_weights(found: Recipe, expected: Recipe) -> None:
    ours, theirs = (load_file(model_folder(recipe) / "model.safetensors") for recipe in (found, expected))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.fixture
def recipe_of(tiny_recipe: Callable[..., Recipe], tmp_path: Path, data: Path) -> Callable[..., Recipe]:
    """Half of the instructions are text only: at some steps one process has pictures and the other has none."""
    records = json.loads((data / "questions.json").read_text())
    texts = [{"question": f"is it red {number} ?", "answer": "no"} for number in range(len(records) // 2)]
    (data / "questions.json").write_text(json.dumps(records + texts))

    def make(name: str, **changes: Any) -> Recipe:
        micro = {"pretrain__micro_batch_size": 2, "instruct__micro_batch_size": 2}
        return tiny_recipe(output=str(tmp_path / name), **micro | changes)

    return make


@pytest.mark.medium
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_processes_have_the_losses_of_one(
    recipe_of: Callable[..., Recipe], tmp_path: Path, checkpointing: bool
) -> None:
    # With activation checkpointing DDP waits for every trained parameter in every step.
    alone, together = (recipe_of(name, instruct__gradient_checkpointing=checkpointing) for name in ("one", "two"))
    train(alone)
    output = run(together, tmp_path / "two.yaml")
    for stage in ("pretrain", "instruct"):
        assert losses(together, stage) == pytest.approx(losses(alone, stage), rel=1e-5), output
    assert_same_weights(together, alone)
    assert output.count("language model") == 2, "the main process alone shows what trains"


@pytest.mark.medium
def test_two_processes_that_are_killed_go_on(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    options = {"instruct__max_steps": 60, "instruct__learning_rate": 1e-3}
    whole = recipe_of("whole", **options)
    run(whole, tmp_path / "whole.yaml")
    recipe = recipe_of("killed", instruct__checkpoint_minutes=1e-9, **options)
    kill_in_instruction_tuning(recipe, tmp_path / "killed.yaml")
    output = run(recipe, tmp_path / "killed.yaml")
    assert "going on from step" in output
    assert losses(recipe, "instruct") == pytest.approx(losses(whole, "instruct"), rel=1e-5)
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
    assert of_main_process(1.5, torch.device("cpu")) == 1.5
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()


@pytest.mark.medium
def test_a_sharded_model_has_the_losses_of_a_whole_one(assembled: Callable, tmp_path: Path) -> None:
    """FSDP2 through torch's own `fully_shard`, one process with text alone, and a save that puts it together again."""
    model, _ = assembled("qwen2")
    model.save_pretrained(tmp_path / "start")
    model.train().model.vision_tower.requires_grad_(False)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    config = model.config
    expected = []
    for _ in range(2):
        total = 0.0
        for number in range(2):
            batch = batch_of(number, config.image_seq_length, config.image_token_id, config.align_token_id)
            loss = model(**batch, num_items_in_batch=4).loss
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(total)

    program = Path(__file__).parents[1] / "sharded_steps.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(program)]
    done = subprocess.run(
        [*launch, str(tmp_path / "start"), str(tmp_path / "out")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    left = tmp_path / "out" / "losses.json"
    assert left.is_file(), done.stderr
    found = json.loads(left.read_text())
    assert found["kinds"] == ["DTensor"]
    assert found["losses"] == pytest.approx(expected, rel=1e-5)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out" / "model").state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize("sharding", ["full", "gradients"])
def test_a_model_that_is_shared_out_trains_as_a_whole_one(
    recipe_of: Callable[..., Recipe], tmp_path: Path, sharding: str
) -> None:
    checkpointing = sharding == "full"
    alone, shared = (
        recipe_of(name, instruct__gradient_checkpointing=checkpointing, **options)
        for name, options in (
            ("alone", {}),
            ("shared", {"pretrain__sharding": sharding, "instruct__sharding": sharding}),
        )
    )
    train(alone)
    output = run(shared, tmp_path / "shared.yaml")
    assert output.count("shared out (FSDP2) over 2 processes") == 2, output
    for stage in ("pretrain", "instruct"):
        assert losses(shared, stage) == pytest.approx(losses(alone, stage), rel=1e-5), output
    assert_same_weights(shared, alone)
    AutoModelForImageTextToText.from_pretrained(model_folder(shared))


@pytest.mark.medium
def test_a_model_that_is_shared_out_goes_on_after_a_kill(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    """On two processes again to the same losses, bit for bit; and on one that holds the whole model."""
    options = {"instruct__max_steps": 60, "instruct__learning_rate": 1e-3, "instruct__sharding": "full"}
    whole = recipe_of("whole", **options)
    run(whole, tmp_path / "whole.yaml")
    recipe = recipe_of("killed", instruct__checkpoint_minutes=1e-9, **options)
    kill_in_instruction_tuning(recipe, tmp_path / "killed.yaml")
    alone = recipe_of("alone", **options)
    shutil.copytree(recipe.output, alone.output)
    output = run(recipe, tmp_path / "killed.yaml")
    assert "going on from step" in output
    assert losses(recipe, "instruct") == losses(whole, "instruct")
    assert_same_weights(recipe, whole)
    train(alone)
    steps = slice(0, 9)  # until the data has been seen once
    assert losses(alone, "instruct")[steps] == pytest.approx(losses(whole, "instruct")[steps], rel=1e-4)


@pytest.mark.medium
def test_two_machines_share_out_the_model_within_each(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    """Two processes on each of two machines, as far as torchrun can tell: `hybrid` shards in pairs."""
    options = {f"{stage}__{key}": value for stage in ("pretrain", "instruct") for key, value in MACHINES.items()}
    alone, shared = recipe_of("alone"), recipe_of("shared", **options)
    train(alone)
    address = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    nodes = [
        start(shared, tmp_path / f"{node}.yaml", launch=["--nnodes", "2", "--node_rank", str(node), *address])
        for node in range(2)
    ]
    output = "\n".join(node.communicate(timeout=SECONDS)[0] for node in nodes)
    assert output.count("shared out (FSDP2) over 4 processes") == 2, output
    for stage in ("pretrain", "instruct"):
        assert losses(shared, stage) == pytest.approx(losses(alone, stage), rel=1e-5), output
    assert_same_weights(shared, alone)


@pytest.mark.medium
def test_adapters_beside_weights_that_are_shared_out(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    """The frozen weights are held in bfloat16 beside adapters in float32, in the same group."""
    options = {"instruct__lora": {"rank": 4}, "instruct__precision": "bfloat16", "pretrain": None}
    alone, shared = recipe_of("alone", **options), recipe_of("shared", instruct__sharding="full", **options)
    train(alone)
    output = run(shared, tmp_path / "shared.yaml")
    # Sums of bfloat16 products depend on their order.
    assert losses(shared, "instruct") == pytest.approx(losses(alone, "instruct"), rel=2e-2), output
    AutoModelForImageTextToText.from_pretrained(model_folder(shared))


def test_one_process_has_nothing_to_share_out(
    tiny_recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_recipe(pretrain__sharding="full", instruct=None))
    assert "one process, so nothing is shared out" in " ".join(capsys.readouterr().err.split())


def test_an_optimiser_of_whole_matrices_cannot_be_shared_out(tiny_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match="optimizer muon needs whole matrices"):
        train(tiny_recipe(pretrain=None, instruct__sharding="full", instruct__optimizer="muon"))
