"""The output of finished stages: what is gone or damaged is told, and stage 2 starts from the right stage 1."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from stopping import stopped

from aligngpt.errors import AlignGPTError
from aligngpt.training.dry_run import plan
from aligngpt.training.recipe import Recipe, RecipeError, load_recipe
from aligngpt.training.run import train
from aligngpt.training.stage import model_folder

TinyRecipe = Callable[..., Recipe]
SHORT = {"pretrain__max_steps": 1, "instruct__max_steps": 1}


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: (run / "pretrain" / "aligned.safetensors").unlink(), r"aligned\.safetensors is missing"),
        (lambda run: cut_short(run / "pretrain" / "aligned.safetensors"), r"aligned\.safetensors is damaged"),
        (lambda run: shutil.rmtree(run / "model"), "model is missing"),
        (lambda run: (run / "model" / "config.json").unlink(), r"config\.json is missing"),
        (lambda run: (run / "model" / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (lambda run: cut_short(run / "model" / "model.safetensors"), r"model\.safetensors is damaged"),
        (lambda run: (run / "model" / "model.safetensors").write_bytes(b""), r"model\.safetensors is damaged"),
    ],
)
def test_output_that_is_gone_or_damaged_is_told(finished_run: Recipe, spoil: Callable, said: str) -> None:
    recipe = finished_run
    assert len(train(recipe)) == 2
    spoil(Path(recipe.output))
    with pytest.raises(AlignGPTError, match=rf"is finished, but .*{said}.*to train the stage again"):
        train(recipe)


@pytest.fixture
def finished_run(tiny_recipe: TinyRecipe) -> Recipe:
    recipe = tiny_recipe(**SHORT)
    train(recipe)
    return recipe


def test_what_a_job_in_another_container_left_of_the_model_is_removed(finished_run: Recipe) -> None:
    left = Path(finished_run.output) / ".model.0123abcd-7-01234567.tmp"
    left.mkdir()
    train(finished_run)
    assert not left.exists()


def test_files_that_macos_adds_are_no_weights(finished_run: Recipe) -> None:
    for name in ("._model.safetensors", "._model.safetensors.index.json"):
        (Path(finished_run.output) / "model" / name).write_bytes(b"\x00\x05\x16\x07")
    assert len(train(finished_run)) == 2


def test_missing_weights_that_an_index_names_are_told(finished_run: Recipe) -> None:
    folder = model_folder(finished_run)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(AlignGPTError, match=r"model-00002-of-00002\.safetensors is missing"):
        train(finished_run)


def test_a_missing_base_of_adapters_is_told(tiny_recipe: TinyRecipe) -> None:
    recipe = tiny_recipe(pretrain=None, instruct__max_steps=1, instruct__lora={"rank": 2, "merge": False})
    train(recipe)
    assert len(train(recipe)) == 1
    shutil.rmtree(Path(recipe.output) / "base")
    with pytest.raises(AlignGPTError, match=r"is finished, but .*base is missing"):
        train(recipe)


def test_stage_2_before_stage_1_is_refused_at_once(tiny_recipe: TinyRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"pre-training in .* is not finished; run .*`--stage pretrain` first"):
        train(tiny_recipe(), ["instruct"])
    recipe = tiny_recipe()
    stopped(recipe, monkeypatch, 2, "pretrain")
    with pytest.raises(RecipeError, match="`--stage pretrain` first"):
        train(recipe, ["instruct"])


def test_stage_2_never_starts_from_stage_1_of_another_recipe(tiny_recipe: TinyRecipe) -> None:
    train(tiny_recipe(**SHORT), ["pretrain"])
    with pytest.raises(RecipeError, match="pretrain holds a finished stage with other settings or data"):
        train(tiny_recipe(**SHORT | {"pretrain__learning_rate": 0.5}), ["instruct"])
    assert [result.stage for result in train(tiny_recipe(**SHORT), ["instruct"])] == ["instruct"]


def test_problems_of_stage_2_are_told_before_stage_1_trains(tiny_recipe: TinyRecipe) -> None:
    recipe = tiny_recipe(instruct__data="nowhere.json")
    with pytest.raises(RecipeError, match=r"instruct\.data: nowhere\.json does not exist"):
        train(recipe)
    assert not (Path(recipe.output) / "pretrain").exists()


def test_the_recipe_of_a_run_is_written_and_trains_the_same(tiny_recipe: TinyRecipe) -> None:
    recipe = tiny_recipe(**SHORT, instruct__warmup_ratio=0.2)
    results = train(recipe)
    path = Path(recipe.output) / "recipe.yaml"
    assert load_recipe(path) == recipe
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (content["instruct"]["warmup_ratio"], content["instruct"]["schedule"]) == (0.2, recipe.instruct.schedule)
    assert train(load_recipe(path)) == results


def test_a_refused_recipe_does_not_replace_that_of_the_run(tiny_recipe: TinyRecipe) -> None:
    recipe = tiny_recipe(**SHORT)
    train(recipe, ["pretrain"])
    with pytest.raises(RecipeError, match="other settings"):
        train(tiny_recipe(**SHORT | {"pretrain__learning_rate": 0.5}))
    assert load_recipe(Path(recipe.output) / "recipe.yaml") == recipe


def test_only_a_result_of_a_run_is_replaced(tiny_recipe: TinyRecipe, language_folder: Callable) -> None:
    run = Path(tiny_recipe().output)
    shutil.copytree(language_folder("qwen2"), run / "model")
    (run / "recipe.yaml").write_text("a recipe of the user\n")
    named = tiny_recipe(**SHORT, model=tiny_recipe().model.model_dump() | {"language_model": str(run / "model")})
    with pytest.raises(RecipeError, match=r"would replace the backbone .*model; choose another output"):
        train(named, ["pretrain"])
    with pytest.raises(RecipeError, match=r"model, but that folder is not of a run .* choose another output"):
        train(tiny_recipe(**SHORT))
    assert [problem for one in plan(tiny_recipe(**SHORT)) for problem in one.problems if "not of a run" in problem]
    assert (run / "model" / "model.safetensors").is_file() and not (run / "pretrain").exists()
    shutil.rmtree(run)
    train(tiny_recipe(**SHORT))
    shutil.rmtree(run / "instruct")
    assert len(train(tiny_recipe(**SHORT))) == 2


def test_an_output_that_is_a_file_is_told(tiny_recipe: TinyRecipe, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for output in ("taken", "taken/run"):
        with pytest.raises(AlignGPTError, match="taken is a file; choose another output folder"):
            train(tiny_recipe(output=str(tmp_path / output)))


def test_a_cache_that_cannot_be_written_costs_time_and_not_the_run(
    tiny_recipe: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "taken"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    results = train(tiny_recipe(**SHORT, instruct__cache_features=True))
    assert [result.steps for result in results] == [1, 1]
    assert "cannot be written" in capsys.readouterr().err
