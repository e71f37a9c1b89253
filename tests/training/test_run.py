"""Training runs: the parameters each stage changes, its output, and resuming an interrupted run to the same result."""

import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from stopping import stopped
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainingArguments

from aligngpt.errors import AlignGPTError
from aligngpt.model.assembling import assemble
from aligngpt.training import stage as identity
from aligngpt.training import stage_run as module
from aligngpt.training.dry_run import plan
from aligngpt.training.loop import trainer as trainer_module
from aligngpt.training.loop.callback import StageCallback
from aligngpt.training.loop.trainer import StageTrainer
from aligngpt.training.recipe import Recipe, RecipeError
from aligngpt.training.run import train
from aligngpt.training.setup.arguments import accumulation_steps, one_device
from aligngpt.training.setup.compiling import check_compiler
from aligngpt.training.setup.freezing import part_of
from aligngpt.training.stage import model_folder, stage_result


def medium(*values: Any) -> Any:
    """Parameters of a test case that `make check` skips."""
    return pytest.param(*values, marks=pytest.mark.medium)


def start_of(recipe: Recipe) -> dict[str, torch.Tensor]:
    """The initial weights of a run."""
    model, _ = assemble(recipe.model.vision_tower, recipe.model.language_model, seed=recipe.seed)
    return model.state_dict()


def changed_parts(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {part_of(name) for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights_of(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_file(model_folder(recipe) / "model.safetensors")


def test_pretraining_changes_projector_and_levels_alone(tiny_recipe: Callable) -> None:
    recipe = tiny_recipe()
    before = start_of(recipe)
    (result,) = train(recipe, ["pretrain"])
    left = load_file(Path(recipe.output) / "pretrain" / "aligned.safetensors")
    assert {part_of(name) for name in left} == {"projector", "level_table"}
    assert changed_parts(before, left) == {"projector", "level_table"}
    assert (result.stage, result.steps, result.samples, result.rejects) == ("pretrain", 4, 16, 0)
    assert not model_folder(recipe).exists()
    assert stage_result(recipe, "pretrain") == result


def test_instruction_tuning_leaves_a_model_that_answers(tiny_recipe: Callable, pictures: list) -> None:
    recipe = tiny_recipe()
    before = start_of(recipe)
    train(recipe)
    model = AutoModelForImageTextToText.from_pretrained(model_folder(recipe))
    processor = AutoProcessor.from_pretrained(model_folder(recipe))
    after = model.state_dict()
    # The level table is that of pre-training, frozen in the second stage; the tower is unchanged.
    assert changed_parts(before, after) == {"projector", "level_table", "gate", "language_model"}
    pretrained = load_file(Path(recipe.output) / "pretrain" / "aligned.safetensors")
    assert torch.equal(after["model.alignment.levels"], pretrained["model.alignment.levels"])
    question = [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "is it red ?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize("language", ["llama_tied", "mamba2"])
def test_other_language_models_train_too(tiny_recipe: Callable, language: str) -> None:
    recipe = tiny_recipe(language, model__chat_template="plain", pretrain__max_steps=1, instruct__max_steps=2)
    before = start_of(recipe)
    train(recipe)
    assert "language_model" in changed_parts(
        before, AutoModelForImageTextToText.from_pretrained(model_folder(recipe)).state_dict()
    )


def test_a_finished_run_is_not_run_again(tiny_recipe: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe()
    first = train(recipe)
    written = (model_folder(recipe) / "model.safetensors").stat().st_mtime_ns
    assert train(recipe) == first
    assert (model_folder(recipe) / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("branches", "lora"),
    [
        medium(1, None),
        medium(2, None),
        (2, {"rank": 4, "dropout": 0.2}),
    ],
)
@pytest.mark.parametrize(
    ("stage", "step", "checkpoint"), [("pretrain", 3, 2), ("instruct", 3, 2), ("instruct", 1, None)]
)
def test_a_stopped_run_ends_as_one_that_was_not(
    tiny_recipe: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    step: int,
    checkpoint: int | None,
    branches: int,
    lora: dict[str, Any] | None,
) -> None:
    options = {"instruct__questions_per_prefix": branches, "instruct__micro_batch_size": 2, "instruct__lora": lora}
    whole = tiny_recipe(output=str(tmp_path / "whole"), **options)
    train(whole)
    recipe = tiny_recipe(**options)
    if checkpoint:  # as if the checkpoint interval ended at that step
        on_step_end = module.StageCallback.on_step_end

        def saving(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            on_step_end(self, args, state, control, **kwargs)
            control.should_save |= state.global_step == checkpoint

        monkeypatch.setattr(module.StageCallback, "on_step_end", saving)
    stopped(recipe, monkeypatch, step, stage)
    folder = Path(recipe.output) / stage
    assert [path.name for path in (folder / "checkpoints").glob("checkpoint-*")] == (
        [f"checkpoint-{checkpoint}"] if checkpoint else []
    )
    train(recipe)
    expected, found = weights_of(whole), weights_of(recipe)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    for name in ("pretrain", "instruct"):
        losses = [[line["loss"] for line in metrics(Path(one.output) / name)] for one in (whole, recipe)]
        assert losses[0] == losses[1]
        assert len(losses[0]) == 4
    assert not list(folder.glob("checkpoints/*"))


def test_a_half_written_checkpoint_is_passed_over(
    tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = tiny_recipe()
    half = Path(recipe.output) / "pretrain" / "checkpoints" / "checkpoint-3"
    half.mkdir(parents=True)
    (half / "trained.safetensors").write_bytes(b"torn")
    (result,) = train(recipe, ["pretrain"])
    assert result.steps == 4


def test_warm_start_comes_before_the_first_step_and_only_then(
    tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    warm = {"steps": 20, "from_level": 2}
    plain = tiny_recipe(output=str(tmp_path / "plain"))
    train(plain, ["pretrain"])
    recipe = tiny_recipe(pretrain__warm_start=warm)
    calls = []
    start = module.warm_start
    monkeypatch.setattr(module, "warm_start", lambda *args, **kwargs: calls.append(1) or start(*args, **kwargs))
    train(recipe)
    assert calls == [1]
    ours, theirs = (load_file(Path(one.output) / "pretrain" / "aligned.safetensors") for one in (recipe, plain))
    assert not torch.equal(*(one["model.multi_modal_projector.linear_2.weight"] for one in (ours, theirs)))


def test_a_stage_of_one_step_trains_too(tiny_recipe: Callable) -> None:
    """With a warm-up, the learning rate of the only step would be zero."""
    recipe = tiny_recipe(pretrain__batch_size=50, pretrain__max_steps=None, pretrain__epochs=1.0)
    before = start_of(recipe)
    (result,) = train(recipe, ["pretrain"])
    assert (result.steps, result.samples) == (1, 12)
    assert metrics(Path(recipe.output) / "pretrain")[0]["learning_rate"] == 0.01
    left = load_file(Path(recipe.output) / "pretrain" / "aligned.safetensors")
    assert changed_parts(before, left) == {"projector", "level_table"}


@pytest.mark.parametrize(("epochs", "steps", "seen"), [(2.0, 4, 24), (1.5, 3, 18)])
def test_samples_of_short_steps_are_counted(tiny_recipe: Callable, epochs: float, steps: int, seen: int) -> None:
    """The second step of each epoch has four of twelve samples; within an epoch all steps count alike."""
    lengths = {"pretrain__batch_size": 8, "pretrain__max_steps": None, "pretrain__epochs": epochs}
    (result,) = train(tiny_recipe(**lengths), ["pretrain"])
    assert (result.steps, result.samples) == (steps, seen)


def test_a_changed_template_file_is_another_run(tiny_recipe: Callable, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages[0].content }}")
    recipe = tiny_recipe(model__chat_template=str(template))
    first = identity.fingerprint_of(recipe, "instruct", recipe.instruct)
    assert identity.fingerprint_of(recipe, "instruct", recipe.instruct) == first
    template.write_text("{{ messages[1].content }}")
    assert identity.fingerprint_of(recipe, "instruct", recipe.instruct) != first


def test_other_settings_or_data_are_refused(tiny_recipe: Callable, data: Path) -> None:
    train(tiny_recipe(), ["pretrain"])
    with pytest.raises(RecipeError, match="finished stage with other settings or data"):
        train(tiny_recipe(pretrain__learning_rate=0.5), ["pretrain"])
    train(tiny_recipe(pretrain__checkpoint_minutes=3, pretrain__log_steps=2), ["pretrain"])
    (data / "captions.json").write_text((data / "captions.json").read_text().replace("red", "blue"))
    with pytest.raises(RecipeError, match="choose another output"):
        train(tiny_recipe(), ["pretrain"])


def test_an_unfinished_stage_is_never_taken_over_by_another(
    tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(pretrain__checkpoint_minutes=1e-9)
    stopped(recipe, monkeypatch, 2, "pretrain")
    # The first step's checkpoint exists: the second's would have come after the stop.
    with pytest.raises(RecipeError, match="unfinished stage with other settings"):
        train(tiny_recipe(pretrain__learning_rate=0.5))


def test_minutes_end_a_stage(tiny_recipe: Callable) -> None:
    recipe = tiny_recipe(pretrain__max_steps=100_000, pretrain__minutes=0.02)
    (result,) = train(recipe, ["pretrain"])
    assert 1 <= result.steps < 100_000
    lines = metrics(Path(recipe.output) / "pretrain")
    assert lines[-1]["step"] == result.steps
    assert lines[-1]["learning_rate"] < 0.2 * 0.01


def test_levels_are_needed_where_they_are_learnt(tiny_recipe: Callable, data: Path) -> None:
    records = json.loads((data / "captions.json").read_text())
    (data / "captions.json").write_text(
        json.dumps([{k: v for k, v in r.items() if k != "similarity"} for r in records])
    )
    with pytest.raises(AlignGPTError, match=r"captions\.json .* has no levels: run `aligngpt score"):
        train(tiny_recipe(), ["pretrain"])
    train(tiny_recipe(model__alignment="none"), ["pretrain"])


def test_a_level_beyond_the_models_is_an_error(tiny_recipe: Callable) -> None:
    with pytest.raises(AlignGPTError, match=r"has level 8, but model\.num_levels is 4"):
        train(tiny_recipe(model__num_levels=4), ["pretrain"])


def without_level(data: Path, level: int) -> None:
    records = json.loads((data / "captions.json").read_text())
    kept = [{**one, "similarity": level - 2} if one["similarity"] == level - 1 else one for one in records]
    (data / "captions.json").write_text(json.dumps(kept))


def test_a_highest_level_that_no_sample_has_is_an_error(tiny_recipe: Callable, data: Path) -> None:
    """All answers would rest on an embedding as it was drawn."""
    without_level(data, 8)
    said = r"no sample of pretrain\.data has level 8, .* set model\.num_levels to 7"
    with pytest.raises(AlignGPTError, match=said):
        train(tiny_recipe(), ["pretrain"])
    (planned,) = plan(tiny_recipe(), ["pretrain"])
    assert re.search(said, planned.problems[0]) and len(planned.problems) == 1
    train(tiny_recipe(model__num_levels=7), ["pretrain"])


def test_another_level_that_no_sample_has_is_told(
    tiny_recipe: Callable, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_level(data, 5)
    train(tiny_recipe(), ["pretrain"])
    warning = "no sample has level 5: the embedding stays as it was drawn at random"
    assert f"warning: {warning}" in capsys.readouterr().err
    (planned,) = plan(tiny_recipe(), ["pretrain"])
    assert any(warning in note for note in planned.notes) and not planned.problems
    (planned,) = plan(tiny_recipe(model__alignment="none"), ["pretrain"])
    assert not any("no sample has" in note for note in planned.notes)


def test_without_a_limit_gradients_keep_their_norm(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    def trained(limit: float | None) -> tuple[dict[str, torch.Tensor], list[float]]:
        stage = {"optimizer": "sgd", "max_grad_norm": limit}
        changes = {f"instruct__{name}": value for name, value in stage.items()}
        recipe = tiny_recipe(pretrain=None, output=str(tmp_path / str(limit)), **changes)
        train(recipe)
        return weights_of(recipe), [line["grad_norm"] for line in metrics(tmp_path / str(limit) / "instruct")]

    (free, norms), (wide, wide_norms), (narrow, _) = map(trained, (None, 1e30, 0.01))
    assert norms == wide_norms and min(norms) > 0.01
    assert all(torch.equal(free[name], wide[name]) for name in free)
    assert any(not torch.equal(free[name], narrow[name]) for name in free)


def test_steps_by_modality_have_images_in_all_rows_or_in_none(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = []
    compute_loss = StageTrainer.compute_loss

    def noted(self: StageTrainer, model: Any, inputs: dict[str, Any], *others: Any, **options: Any) -> Any:
        images.append(len(inputs.get("pixel_values", [])))
        return compute_loss(self, model, inputs, *others, **options)

    monkeypatch.setattr(StageTrainer, "compute_loss", noted)
    # 24 questions about an image and 13 without one, in steps of four passes.
    train(recipe_of("run", pretrain=None, instruct__group_by_modality=True, instruct__max_steps=5))
    assert sorted(images[start : start + 4] for start in range(0, 16, 4)) == [[0] * 4, *[[2] * 4] * 3]
    assert images[16:] == [0, 0, 0]


def test_a_loss_that_is_no_number_stops_the_stage(tiny_recipe: Callable) -> None:
    recipe = tiny_recipe(pretrain__learning_rate=1e30, pretrain__max_grad_norm=1e30, pretrain__max_steps=8)
    with pytest.raises(AlignGPTError, match=r"the loss is (nan|inf) after step"):
        train(recipe, ["pretrain"])
    stopped = json.loads((Path(recipe.output) / "pretrain" / "stopped.json").read_text())
    assert len(stopped["samples"]) == 4 and set(stopped["samples"]) <= set(map(str, range(12)))
    train(tiny_recipe(pretrain__max_steps=1), ["pretrain"])
    assert not (Path(recipe.output) / "pretrain" / "stopped.json").exists()


def test_a_stage_that_stopped_is_to_be_removed_if_it_has_a_checkpoint(
    tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tiny_recipe(pretrain__checkpoint_minutes=1e-9, pretrain__max_steps=8), monkeypatch, 3, "pretrain")
    monkeypatch.setattr(
        trainer_module.LossWatch, "next", lambda self: trainer_module.StepLosses(3, [(math.nan, ["7"])])
    )
    advice = r"correct the data, remove .*pretrain and run the command again"
    with pytest.raises(AlignGPTError, match=f"the loss is nan after step 3; .*{advice}"):
        train(tiny_recipe(pretrain__checkpoint_minutes=1e-9, pretrain__max_steps=8), ["pretrain"])
    monkeypatch.undo()
    corrected = tiny_recipe(pretrain__learning_rate=0.001, pretrain__max_steps=8)
    with pytest.raises(RecipeError, match="unfinished stage with other settings"):
        train(corrected, ["pretrain"])
    shutil.rmtree(Path(corrected.output) / "pretrain")
    assert train(corrected, ["pretrain"])[0].steps == 8


def test_the_samples_of_every_micro_batch_and_process_are_named(
    tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if another process had found such a loss, too.
    monkeypatch.setattr(trainer_module, "gather", lambda found: [*found, (float("inf"), ["of another"])])
    wild = {"pretrain__learning_rate": 1e30, "pretrain__max_grad_norm": 1e30, "pretrain__micro_batch_size": 2}
    recipe = tiny_recipe(**wild)
    with pytest.raises(AlignGPTError, match=r"the loss is (nan|inf) after step"):
        train(recipe, ["pretrain"])
    named = json.loads((Path(recipe.output) / "pretrain" / "stopped.json").read_text())["samples"]
    assert len(named) == 5 and named[-1] == "of another"


def test_a_loss_found_by_another_process_stops_this_one_which_writes_no_file(
    tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_up, calls = trainer_module.add_up, []

    def adding(values: torch.Tensor, device: torch.device) -> torch.Tensor:
        calls.append(len(values))
        # The three figures that are exchanged at each step: the last counts losses that are not finite.
        second = len(values) == 3 and calls.count(3) == 2
        return add_up(values, device) + (torch.tensor([0.0, 0.0, 1.0]) if second else 0)

    monkeypatch.setattr(trainer_module, "add_up", adding)
    monkeypatch.setattr(trainer_module, "gather", lambda found: [*found, (float("nan"), ["7"])])
    monkeypatch.setattr(trainer_module, "is_main_process", lambda: False)
    recipe = tiny_recipe()
    with pytest.raises(AlignGPTError, match="the loss is nan after step 1;"):
        train(recipe, ["pretrain"])
    assert not (Path(recipe.output) / "pretrain" / "stopped.json").exists()


def test_a_stage_that_learns_from_nothing_stops(tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    load = module.load_model

    def without_levels(*args: Any, **options: Any) -> Any:
        model, processor = load(*args, **options)
        model.model.alignment.levels.data.zero_()
        return model, processor

    monkeypatch.setattr(module, "load_model", without_levels)
    recipe = tiny_recipe(instruct__train=["gate"], instruct__max_steps=12, pretrain=None)
    with pytest.raises(AlignGPTError, match="all gradients were zero 3 times"):
        train(recipe)


def test_text_alone_trains_where_parts_for_images_train(tiny_recipe: Callable, data: Path) -> None:
    texts = [{"question": f"what is it {number} ?", "answer": "red circle"} for number in range(6)]
    (data / "texts.json").write_text(json.dumps(texts))
    recipe = tiny_recipe(
        instruct__data=str(data / "texts.json"),
        instruct__train=["projector", "gate"],
        instruct__max_steps=2,
        pretrain=None,
    )
    assert train(recipe)[0].steps == 2


def test_wrong_recipes_say_what_is_wrong(tiny_recipe: Callable) -> None:
    with pytest.raises(RecipeError, match="no section pretrain or instruct"):
        train(tiny_recipe(pretrain=None, instruct=None))
    with pytest.raises(AlignGPTError, match=r"pretrain\.data: nowhere\.json does not exist"):
        train(tiny_recipe(pretrain__data="nowhere.json"))
    with pytest.raises(RecipeError, match="attention 'magic' cannot be used"):
        train(tiny_recipe(model__attention="magic"))
    with pytest.raises(RecipeError, match="mamba2 has a recurrent state instead of attention"):
        train(tiny_recipe("mamba2", model__chat_template="plain", pretrain=None, instruct__questions_per_prefix=2))
    with pytest.raises(RecipeError, match="mistral attends over 12 tokens only"):
        train(tiny_recipe("mistral", pretrain=None, instruct__questions_per_prefix=2, instruct__packing="padded"))


def test_the_precision_is_chosen_once(tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(identity, "supports_bfloat16", lambda device: asked.append(device) or len(asked) == 1)
    recipe = tiny_recipe(pretrain__precision="auto", pretrain__checkpoint_minutes=1e-9)
    stopped(recipe, monkeypatch, 2, "pretrain")
    train(recipe, ["pretrain"])
    assert len(asked) == 1
    assert (Path(recipe.output) / "pretrain" / "precision").read_text() == "bfloat16"


def test_a_folder_of_the_same_name_elsewhere_is_not_the_one_that_was_claimed(tmp_path: Path) -> None:
    assert not identity.claimed(tmp_path, "fingerprint", 0)
    identity.claim(tmp_path, "fingerprint")
    assert identity.claimed(tmp_path, "fingerprint", 0)
    assert not identity.claimed(tmp_path, "another", 0)


def test_a_stage_that_resumes_nothing_forgets_its_precision(tmp_path: Path) -> None:
    (tmp_path / "precision").write_text("bfloat16")
    identity.claim(tmp_path, "fingerprint")
    assert not (tmp_path / "precision").exists()


@pytest.mark.slow
def test_kill_9_costs_nothing_but_time(tiny_recipe: Callable, tmp_path: Path) -> None:
    changes = {"pretrain__max_steps": 60, "instruct__max_steps": 60, "instruct__questions_per_prefix": 2}
    changes |= {f"{stage}__checkpoint_minutes": 1e-9 for stage in ("pretrain", "instruct")}
    whole, recipe = (tiny_recipe(output=str(tmp_path / name), **changes) for name in ("whole", "killed"))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    command = [sys.executable, "-c", "from aligngpt.cli import main; main()", "train", str(path)]
    kills = 0
    for stage in ("pretrain", "instruct"):
        job = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ)
        deadline = time.monotonic() + 60
        while job.poll() is None and time.monotonic() < deadline:
            if list((Path(recipe.output) / stage / "checkpoints").glob("checkpoint-*/complete.json")):
                job.send_signal(signal.SIGKILL)
                job.wait()
                kills += 1
                break
            time.sleep(0.01)
    assert kills == 2
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    train(whole)
    expected, found = weights_of(whole), weights_of(recipe)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("branches", [1, 2])
def test_packed_rows_train_as_padded_ones(tiny_recipe: Callable, tmp_path: Path, branches: int) -> None:
    weights = {}
    for packing in ("packed", "padded"):
        # A single step over all rows, so that their order in the micro-batches does not matter.
        recipe = tiny_recipe(
            instruct__packing=packing,
            instruct__questions_per_prefix=branches,
            instruct__batch_size=26,
            instruct__micro_batch_size=13,
            instruct__max_steps=1,
            # Adam's first step would make the rounding of a gradient near zero as large as any other.
            instruct__optimizer="sgd",
            pretrain=None,
            output=str(tmp_path / packing),
        )
        before = start_of(recipe)
        train(recipe)
        assert changed_parts(before, weights_of(recipe)) >= {"projector", "gate", "language_model"}
        weights[packing] = weights_of(recipe), metrics(Path(recipe.output) / "instruct")[-1]["loss"]
    (packed, loss), (padded, expected) = weights["packed"], weights["padded"]
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, tensor in padded.items():
        torch.testing.assert_close(packed[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_language_model_that_cannot_be_packed_is_padded_or_refused(tiny_recipe: Callable) -> None:
    with pytest.raises(RecipeError, match="mamba2 does not support it"):
        train(tiny_recipe("mamba2", pretrain__packing="packed"))
    assert train(tiny_recipe("mamba2", pretrain__max_steps=1, instruct=None))


def test_a_full_disk_leaves_the_last_good_checkpoint(tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(pretrain__checkpoint_minutes=1e-9, instruct=None)
    save, calls = trainer_module.save_file, []

    def filling(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args, **kwargs)

    monkeypatch.setattr(trainer_module, "save_file", filling)
    with pytest.raises(AlignGPTError, match=r"checkpoint-3 cannot be written: .*No space left.* make room"):
        train(recipe)
    folder = Path(recipe.output) / "pretrain" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["checkpoint-2"]
    assert train(recipe)[0].steps == 4


@pytest.mark.medium
def test_a_stop_in_the_second_epoch_with_workers_costs_nothing(
    tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Twelve captions, four per step: the second epoch begins after step 3.
    options = {"pretrain__max_steps": 8, "pretrain__micro_batch_size": 2, "pretrain__workers": 2, "instruct": None}
    whole = tiny_recipe(output=str(tmp_path / "whole"), **options)
    train(whole)
    recipe = tiny_recipe(pretrain__checkpoint_minutes=1e-9, **options)
    stopped(recipe, monkeypatch, 6, "pretrain")
    monkeypatch.undo()
    train(recipe)
    files = (Path(one.output) / "pretrain" / "aligned.safetensors" for one in (whole, recipe))
    expected, found = map(load_file, files)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    losses = [[line["loss"] for line in metrics(Path(one.output) / "pretrain")] for one in (whole, recipe)]
    assert losses[0] == losses[1] and len(losses[0]) == 8


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ({"instruct__optimizer": "muon", "instruct__learning_rates": {"gate": 0.02}}, "model.safetensors"),
        medium({"instruct__optimizer": "adafactor"}, "model.safetensors"),
        medium({"instruct__optimizer": "adamw_8bit", "language": "llama_wide"}, "model.safetensors"),
        medium({"instruct__lora": {"rank": 4, "bits": 4}, "language": "llama_wide"}, "model.safetensors"),
        ({"instruct__lora": {"rank": 4, "dropout": 0.2, "merge": False}}, "adapter_model.safetensors"),
    ],
    ids=["muon", "adafactor", "8 bits", "4 bits", "adapter folder"],
)
def test_other_optimisers_and_adapters_go_on_as_if_nothing_had_stopped_them(
    tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: dict[str, Any], file: str
) -> None:
    whole = tiny_recipe(output=str(tmp_path / "whole"), pretrain=None, **options)
    train(whole)
    recipe = tiny_recipe(pretrain=None, instruct__checkpoint_minutes=1e-9, **options)
    stopped(recipe, monkeypatch, 3, "instruct")
    assert list((Path(recipe.output) / "instruct" / "checkpoints").glob("checkpoint-2"))
    train(recipe)
    expected, found = (load_file(model_folder(one) / file) for one in (whole, recipe))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.mark.medium
def test_a_tracker_gets_the_metrics(tiny_recipe: Callable, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    recipe = tiny_recipe(report_to=["tensorboard"], instruct=None)
    train(recipe)
    assert list(Path(recipe.output).rglob("events.out.tfevents.*"))


def test_a_tracker_that_is_not_there_is_named(tiny_recipe: Callable) -> None:
    with pytest.raises(RecipeError, match="report_to nonesuch cannot be used"):
        train(tiny_recipe(report_to=["nonesuch"], instruct=None))


def test_only_the_last_blocks_of_the_tower_change(tiny_recipe: Callable) -> None:
    recipe = tiny_recipe(instruct__train=["vision_tower", "gate"], instruct__vision_blocks=1, pretrain=None)
    before = start_of(recipe)
    train(recipe)
    changed = {name for name, tensor in weights_of(recipe).items() if not torch.equal(tensor, before[name])}
    tower = {name for name in changed if part_of(name) == "vision_tower"}
    # Three blocks, the last of which comes after the feature layer.
    assert tower and all(".layers.1." in name for name in tower)
    assert {part_of(name) for name in changed} == {"vision_tower", "gate"}


def test_more_or_idle_blocks_of_the_tower_are_refused(tiny_recipe: Callable) -> None:
    with pytest.raises(RecipeError, match="vision_blocks is 3, but 2 blocks"):
        train(tiny_recipe(instruct__train=["vision_tower"], instruct__vision_blocks=3, pretrain=None))
    with pytest.raises(RecipeError, match="name vision_tower in train"):
        tiny_recipe(instruct__vision_blocks=1)


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_compiled_layers_train_alike(tiny_recipe: Callable, packing: str) -> None:
    options = {"pretrain": None, "instruct__packing": packing, "instruct__gradient_checkpointing": packing == "padded"}
    plain, compiled = (
        tiny_recipe(output=f"{tiny_recipe().output}-{name}", instruct__compile=name == "compiled", **options)
        for name in ("plain", "compiled")
    )
    train(plain)
    train(compiled)
    losses = [[line["loss"] for line in metrics(Path(one.output) / "instruct")] for one in (compiled, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    found, expected = (load_file(model_folder(one) / "model.safetensors") for one in (compiled, plain))
    assert set(found) == set(expected)


@pytest.mark.parametrize(
    ("rows", "micro", "devices", "said"),
    [
        (8, None, 3, "batch_size 8 is not a multiple of 3, the number of devices"),
        (8, 1, 3, "batch_size 8 is not a multiple of 3, the number of devices"),
        (
            12,
            4,
            2,
            "6 rows on each of 2 devices, not a multiple of micro_batch_size 4; set the latter to a divisor of 6",
        ),
        (8, None, 2, "not a multiple of micro_batch_size 8; set the latter to a divisor of 4"),
    ],
)
def test_a_step_that_cannot_be_divided_among_the_devices_says_which_value_would_do(
    tiny_recipe: Callable, rows: int, micro: int | None, devices: int, said: str
) -> None:
    stage = tiny_recipe().instruct.model_copy(update={"batch_size": rows, "micro_batch_size": micro})
    with pytest.raises(RecipeError, match=re.escape(said)):
        accumulation_steps(stage, devices)
    for divisor in (1, 3):
        fits = stage.model_copy(update={"batch_size": 12, "micro_batch_size": divisor})
        assert accumulation_steps(fits, 2) == 6 // divisor


def test_compiling_without_a_compiler_says_what_to_do(tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RecipeError, match=r"compile needs a C\+\+ compiler, but no-such-compiler was not found"):
        train(tiny_recipe(pretrain=None, instruct__compile=True))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RecipeError, match=r"adamw needs a C compiler, but no-such-compiler was not found; .* or wait"):
        check_compiler("adamw", torch.device("cuda"), "wait")


def test_a_process_trains_on_one_gpu_and_says_how_several_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = TrainingArguments(use_cpu=True)
    assert arguments.n_gpu == 0
    arguments._n_gpu = 4  # simulates four GPUs
    one_device(arguments)
    assert arguments.n_gpu == 1
    assert "torchrun --nproc_per_node 4" in capsys.readouterr().err
    one_device(arguments)
    assert not capsys.readouterr().err


def test_workers_that_end_one_after_another_are_one_error(
    tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch raises from its SIGCHLD handler for every worker that dies, also while the first error is handled."""

    def raise_for_child(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 2) is killed by signal: Killed.")

    def train_until_killed(*_: object, **__: object) -> None:
        signal.signal(signal.SIGCHLD, raise_for_child)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    close = StageCallback.close

    def close_while_another_ends(self: StageCallback, error: BaseException | None = None) -> None:
        subprocess.run([sys.executable, "-c", ""], check=True)
        close(self, error)

    before = signal.getsignal(signal.SIGCHLD)
    monkeypatch.setattr(StageTrainer, "train", train_until_killed)
    monkeypatch.setattr(StageCallback, "close", close_while_another_ends)
    try:
        with pytest.raises(AlignGPTError, match=r"a worker process that reads images died .*pid 1"):
            train(tiny_recipe(), ["pretrain"])
    finally:
        signal.signal(signal.SIGCHLD, before)
