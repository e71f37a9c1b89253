"""A resumed stage ends like one that was never stopped; settings that only change how it computes may change."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from several_processes import figures, losses, run
from stopping import stopped

from aligngpt.errors import AlignGPTError
from aligngpt.locks import FolderInUse, owned_folder
from aligngpt.training import stage_run as module
from aligngpt.training.loop.callback import forget_metrics_after
from aligngpt.training.recipe import Recipe, RecipeError
from aligngpt.training.run import train
from aligngpt.training.stage import model_folder, stage_result

EVERY_STEP = 1e-9


def weights_of(recipe: Recipe) -> dict[str, torch.Tensor]:
    if recipe.instruct is None:
        return load_file(Path(recipe.output) / "pretrain" / "aligned.safetensors")
    return load_file(model_folder(recipe) / "model.safetensors")


def assert_equal(found: Recipe, expected: Recipe) -> None:
    ours, theirs = weights_of(found), weights_of(expected)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_kill_between_the_last_step_and_the_end_adds_no_step(
    tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a constant learning rate, an extra step would show in the weights."""
    options = {"pretrain__schedule": "constant", "instruct": None}
    whole = tiny_recipe(output=str(tmp_path / "whole"), **options)
    train(whole)
    recipe = tiny_recipe(pretrain__checkpoint_minutes=EVERY_STEP, **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(module, "save_pretrained_parts", killed)
        train(recipe)
    train(recipe)
    assert_equal(recipe, whole)
    assert figures(recipe, "pretrain") == figures(whole, "pretrain")
    found, expected = stage_result(recipe, "pretrain"), stage_result(whole, "pretrain")
    assert found is not None and expected is not None
    assert (found.steps, found.samples, found.loss) == (expected.steps, expected.samples, expected.loss)


@pytest.mark.medium
def test_a_stop_within_a_log_interval_changes_no_figure(
    tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {f"{stage}__{key}": value for stage in ("pretrain", "instruct") for key, value in LOGGED.items()}
    whole = tiny_recipe(output=str(tmp_path / "whole"), **options)
    train(whole)
    recipe = tiny_recipe(pretrain__checkpoint_minutes=EVERY_STEP, instruct__checkpoint_minutes=EVERY_STEP, **options)
    for stage, step in (("pretrain", 3), ("pretrain", 5), ("instruct", 3), ("instruct", 6)):
        stopped(recipe, monkeypatch, step, stage)
    train(recipe)
    assert_equal(recipe, whole)
    for stage in ("pretrain", "instruct"):
        assert figures(recipe, stage) == figures(whole, stage)
        names = {name for line in figures(whole, stage) for name in line}
        assert {"loss", "padding"} < names and any(one.startswith(("gate_", "loss_level")) for one in names)


LOGGED = {"log_steps": 3, "max_steps": 7}


@pytest.mark.medium
@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch_size": 2},
        {"micro_batch_size": 1, "packing": "padded"},
        {"micro_batch_tokens": 256},
        {"gradient_checkpointing": True},
        {"cache_features": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_how_a_stage_computes_may_change_when_it_is_resumed(
    tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole = tiny_recipe(output=str(tmp_path / "whole"))
    train(whole)
    recipe = tiny_recipe(instruct__checkpoint_minutes=EVERY_STEP)
    stopped(recipe, monkeypatch, 3, "instruct")
    both = {f"{stage}__{name}": value for stage in ("pretrain", "instruct") for name, value in changes.items()}
    results = train(tiny_recipe(**both))
    assert [one.steps for one in results] == [4, 4]
    assert losses(recipe, "instruct") == pytest.approx(losses(whole, "instruct"), rel=1e-4)
    with pytest.raises(RecipeError, match="finished stage with other settings"):
        train(tiny_recipe(instruct__weight_decay=0.1))


def test_a_stage_is_not_resumed_with_other_samples(
    tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    """An image that was missing is there when the run is resumed: the order of all samples would be another."""
    (data / "5.png").rename(data / "away.png")
    recipe = tiny_recipe(instruct=None, pretrain__checkpoint_minutes=EVERY_STEP, pretrain__max_reject_share=0.2)
    stopped(recipe, monkeypatch, 3, "pretrain")
    (data / "away.png").rename(data / "5.png")
    with pytest.raises(AlignGPTError, match=r"the data gives other samples than when .*checkpoint-2 was written"):
        train(recipe)
    shutil.rmtree(Path(recipe.output) / "pretrain" / "checkpoints")
    (result,) = train(recipe)
    assert (result.steps, result.rejects) == (4, 0)


def test_instruction_tuning_goes_on_only_from_the_pretraining_that_it_started_from(
    tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(pretrain__max_steps=1, instruct__checkpoint_minutes=EVERY_STEP)
    stopped(recipe, monkeypatch, 3, "instruct")
    path = Path(recipe.output) / "pretrain" / "aligned.safetensors"
    first = path.read_bytes()
    shutil.rmtree(path.parent)
    # On another machine, pre-training gives slightly other weights.
    train(recipe, ["pretrain"])
    save_file({name: tensor + 1e-3 for name, tensor in load_file(path).items()}, path)
    second = path.read_bytes()
    with pytest.raises(RecipeError, match=r"pre-training was done again. Restore .* or remove .*instruct and run"):
        train(recipe)
    # The same tensors, in another file than the first one.
    path.write_bytes(first)
    save_file(load_file(path), path, {"another": "header"})
    assert path.read_bytes() != first
    train(recipe)
    path.write_bytes(second)
    with pytest.raises(RecipeError, match="pre-training was done again"):
        train(recipe)
    shutil.rmtree(Path(recipe.output) / "instruct")
    assert len(train(recipe)) == 2


@pytest.mark.slow
def test_a_stage_that_one_process_began_may_be_shared_out(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = recipe_of("whole", instruct__max_steps=5)
    train(whole)
    recipe = recipe_of("one", instruct__checkpoint_minutes=EVERY_STEP, instruct__max_steps=5)
    stopped(recipe, monkeypatch, 3, "instruct")
    shared = recipe_of("one", instruct__sharding="full", instruct__max_steps=5)
    output = run(shared, tmp_path / "one.yaml")
    assert "resuming at step 2" in output and "sharded (FSDP2)" in output, output
    assert losses(shared, "instruct") == pytest.approx(losses(whole, "instruct"), rel=1e-4)


@pytest.mark.medium
def test_other_weights_of_a_backbone_are_another_run(
    tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = tiny_recipe()
    moved = str(tmp_path / "language")
    shutil.copytree(first.model.language_model, moved)
    recipe = tiny_recipe(pretrain__checkpoint_minutes=EVERY_STEP)
    stopped(recipe, monkeypatch, 2, "pretrain")
    model = first.model.model_copy(update={"language_model": moved})
    elsewhere = recipe.model_copy(update={"model": model})
    train(elsewhere, ["pretrain"])  # the same files, so the same run
    file = Path(moved) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RecipeError, match="other settings or data"):
        train(elsewhere, ["pretrain"])


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.pt", "trainer_state.json", "figures.json"])
def test_a_flipped_bit_in_a_checkpoint_is_found(
    tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recipe = tiny_recipe(pretrain__checkpoint_minutes=EVERY_STEP)
    stopped(recipe, monkeypatch, 2, "pretrain")
    path = Path(recipe.output) / "pretrain" / "checkpoints" / "checkpoint-1" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(AlignGPTError, match=rf"{name} has changed since it was written.*remove the folder"):
        train(recipe)


@pytest.mark.parametrize("tail", ['{"step": 2, "text": "h\udcc3', "3", "[1]", '{"steps": 1}', '{"step": null}'])
def test_metrics_that_a_kill_cut_anywhere_are_passed_over(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 5}\n' + tail.encode("utf-8", "surrogateescape"))
    forget_metrics_after(path, 3)
    assert path.read_text() == '{"step": 1}\n'


@pytest.mark.medium
def test_one_process_at_a_time_trains_in_a_folder(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    import subprocess
    import sys

    recipe = tiny_recipe(instruct=None)
    hold = (
        "import sys; from aligngpt.locks import owned_folder\n"
        "with owned_folder(sys.argv[1], 'train'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, recipe.output], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=str(other.pid)):
            train(recipe)
        other.kill()
    with owned_folder(recipe.output, "train"):
        train(recipe)


def test_a_finished_stage_whose_model_is_gone_says_so(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe(instruct=None)
    train(recipe)
    (Path(recipe.output) / "pretrain" / "aligned.safetensors").unlink()
    with pytest.raises(AlignGPTError, match=r"is finished, but .*aligned\.safetensors is missing; restore it"):
        train(recipe)
