"""A model sharded over several processes trains like one held by a single process."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from several_processes import SECONDS, assert_same_weights, free_port, kill_in_instruction_tuning, losses, run, start
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText

from aligngpt.training.distributed.fsdp import gradients_later, shard
from aligngpt.training.recipe import Recipe, RecipeError
from aligngpt.training.run import train
from aligngpt.training.stage import model_folder

MACHINES = {"sharding": "hybrid", "micro_batch_size": 1}


@pytest.mark.medium
@pytest.mark.parametrize("sharding", ["full", pytest.param("gradients", marks=pytest.mark.slow)])
def test_a_model_that_is_shared_out_trains_as_a_whole_one(
    recipe_of: Callable[..., Recipe], tmp_path: Path, sharding: str
) -> None:
    parts = ["language_model", "projector", "gate"]
    options: dict[str, object] = {
        "full": {"instruct__gradient_checkpointing": True},
        "gradients": {"instruct__train": ["vision_tower", *parts]},
    }[sharding]
    # Features are kept and the projector is warmed up before the other process has the weights.
    options |= {"pretrain__warm_start": {"steps": 5, "batch_size": 4, "learning_rate": 0.01}}
    options |= {"pretrain__cache_features": True}
    shares = {"pretrain__sharding": sharding, "instruct__sharding": sharding}
    alone, shared = recipe_of("alone", **options), recipe_of("shared", **options, **shares)
    train(alone)
    output = run(shared, tmp_path / "shared.yaml")
    assert output.count("sharded (FSDP2) over 2 processes") == 2, output
    for stage in ("pretrain", "instruct"):
        assert losses(shared, stage) == pytest.approx(losses(alone, stage), rel=1e-5), output
    assert_same_weights(shared, alone)
    AutoModelForImageTextToText.from_pretrained(model_folder(shared))


@pytest.mark.slow
def test_a_model_that_is_shared_out_goes_on_after_a_kill(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    """Resumed on two processes the losses are identical bit for bit; it also resumes on a single process."""
    options = {"pretrain": None, "instruct__max_steps": 20, "instruct__learning_rate": 1e-3}
    options["instruct__sharding"] = "full"
    whole = recipe_of("whole", **options)
    run(whole, tmp_path / "whole.yaml")
    recipe = recipe_of("killed", instruct__checkpoint_minutes=1e-9, **options)
    kill_in_instruction_tuning(recipe, tmp_path / "killed.yaml")
    alone = recipe_of("alone", **options)
    shutil.copytree(recipe.output, alone.output)
    output = run(recipe, tmp_path / "killed.yaml")
    assert "resuming at step" in output
    assert losses(recipe, "instruct") == losses(whole, "instruct")
    assert_same_weights(recipe, whole)
    train(alone)
    assert losses(alone, "instruct") == pytest.approx(losses(whole, "instruct"), rel=1e-3)


@pytest.mark.slow
def test_two_machines_share_out_the_model_within_each(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    """Simulate two machines with two processes each for torchrun: `hybrid` shards in pairs."""
    options = {f"{stage}__{key}": value for stage in ("pretrain", "instruct") for key, value in MACHINES.items()}
    alone, shared = recipe_of("alone"), recipe_of("shared", **options)
    train(alone)
    address = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    nodes = [
        start(shared, tmp_path / f"{node}.yaml", launch=["--nnodes", "2", "--node_rank", str(node), *address])
        for node in range(2)
    ]
    output = "\n".join(node.communicate(timeout=SECONDS)[0] for node in nodes)
    assert output.count("sharded (FSDP2) over 4 processes") == 2, output
    for stage in ("pretrain", "instruct"):
        assert losses(shared, stage) == pytest.approx(losses(alone, stage), rel=1e-5), output
    assert_same_weights(shared, alone)


@pytest.mark.slow
def test_adapters_beside_weights_that_are_shared_out(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    """Frozen weights in bfloat16 and adapters in float32 are in the same group."""
    options = {"instruct__lora": {"rank": 4}, "instruct__precision": "bfloat16", "pretrain": None}
    alone, shared = recipe_of("alone", **options), recipe_of("shared", instruct__sharding="full", **options)
    train(alone)
    output = run(shared, tmp_path / "shared.yaml")
    # Sums of bfloat16 products depend on the order of summation.
    assert losses(shared, "instruct") == pytest.approx(losses(alone, "instruct"), rel=2e-2), output
    AutoModelForImageTextToText.from_pretrained(model_folder(shared))


@pytest.fixture
def one_process_group(tmp_path: Path) -> Iterator[None]:
    """A group of gloo with this process alone: everything is gathered and reduced as with several."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
@pytest.mark.parametrize("how", ["full", "gradients"])
def test_no_whole_gradient_is_held_between_micro_batches(
    assembled: Callable, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    model, _ = assembled("llama")
    whole, _ = assembled("llama")
    whole.load_state_dict(model.state_dict())
    for one in (model, whole):
        one.train()
        one.model.vision_tower.requires_grad_(False)
    shard(model, how, torch.device("cpu"), in_bfloat16=False)
    batches = [torch.arange(3, 9).repeat(2, 1), torch.arange(4, 10).repeat(2, 1)]
    with gradients_later(model):
        model(input_ids=batches[0], labels=batches[0]).loss.backward()
    # A gradient that waits to be reduced belongs to the gathered parameter, and the sharded one has none yet.
    held = {name for name, parameter in model.named_parameters() if isinstance(parameter.grad, DTensor)}
    model(input_ids=batches[1], labels=batches[1]).loss.backward()
    for batch in batches:
        whole(input_ids=batch, labels=batch).loss.backward()
    gradients = {name: one.grad for name, one in whole.named_parameters() if one.grad is not None}
    assert held == gradients.keys()
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad.full_tensor(), gradients[name])


def test_moments_in_8_bits_cannot_be_shared_out(tiny_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match="do not cover the moments of adamw_torch_8bit"):
        train(tiny_recipe(pretrain=None, instruct__sharding="full", instruct__optimizer="adamw_torch_8bit"))


def test_one_process_has_nothing_to_share_out(
    tiny_recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_recipe(pretrain__sharding="full", instruct=None))
    assert "only one process, so nothing is sharded" in " ".join(capsys.readouterr().err.split())


def test_an_optimiser_of_whole_matrices_cannot_be_shared_out(tiny_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match="optimizer muon needs whole matrices"):
        train(tiny_recipe(pretrain=None, instruct__sharding="full", instruct__optimizer="muon"))
