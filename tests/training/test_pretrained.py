"""Instruction tuning that starts from the pre-training of another run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from aligngpt.errors import AlignGPTError
from aligngpt.training.dry_run import plan
from aligngpt.training.recipe import RecipeError
from aligngpt.training.run import train
from aligngpt.training.setup.freezing import PRETRAINED_FILE
from aligngpt.training.stage import fingerprint_of, model_folder


@pytest.mark.medium
@pytest.mark.parametrize("named", ["pretrain", f"pretrain/{PRETRAINED_FILE}"])
def test_it_gives_the_model_that_both_stages_in_one_run_give(tiny_recipe: Callable, tmp_path: Path, named: str) -> None:
    whole = tiny_recipe(output=str(tmp_path / "whole"))
    train(whole)
    second = tiny_recipe(
        output=str(tmp_path / "second"), pretrain=None, instruct__pretrained=str(tmp_path / "whole" / named)
    )
    train(second)
    ours, theirs = (load_file(model_folder(one) / "model.safetensors") for one in (second, whole))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    fresh = tiny_recipe(output=str(tmp_path / "fresh"), pretrain=None)
    train(fresh)
    others = load_file(model_folder(fresh) / "model.safetensors")
    assert not others["model.alignment.levels"].equal(theirs["model.alignment.levels"])


def test_pretraining_may_go_on_from_another(tiny_recipe: Callable, tmp_path: Path) -> None:
    train(tiny_recipe(output=str(tmp_path / "one")), ["pretrain"])
    further = tiny_recipe(
        output=str(tmp_path / "two"),
        pretrain__pretrained=str(tmp_path / "one" / "pretrain"),
        pretrain__learning_rate=1e-9,
    )
    train(further, ["pretrain"])
    before, after = (load_file(tmp_path / name / "pretrain" / PRETRAINED_FILE) for name in ("one", "two"))
    for name in before:
        assert before[name].allclose(after[name], atol=1e-6)


def test_other_weights_are_another_run(tiny_recipe: Callable, tmp_path: Path) -> None:
    train(tiny_recipe(output=str(tmp_path / "one")), ["pretrain"])
    path = tmp_path / "one" / "pretrain" / PRETRAINED_FILE
    moved = path.rename(tmp_path / "moved.safetensors")
    recipes = [tiny_recipe(pretrain=None, instruct__pretrained=str(moved))]
    before = fingerprint_of(recipes[0], "instruct", recipes[0].instruct)
    tensors = load_file(moved)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, moved)
    assert fingerprint_of(recipes[0], "instruct", recipes[0].instruct) != before


def test_a_file_that_is_missing_is_told_before_anything_is_loaded(tiny_recipe: Callable, tmp_path: Path) -> None:
    recipe = tiny_recipe(pretrain=None, instruct__pretrained=str(tmp_path / "nothing"))
    with pytest.raises(AlignGPTError, match=r"instruct\.pretrained: there is no file .*nothing"):
        train(recipe)
    (problem,) = plan(recipe)[0].problems
    assert "instruct.pretrained: there is no file" in problem


def test_weights_of_another_kind_of_model_are_refused(tiny_recipe: Callable, tmp_path: Path) -> None:
    train(tiny_recipe(output=str(tmp_path / "one")), ["pretrain"])
    recipe = tiny_recipe(
        pretrain=None, model__alignment="none", instruct__pretrained=str(tmp_path / "one" / "pretrain")
    )
    with pytest.raises(AlignGPTError, match=r"does not fit the model: model\.alignment\.levels is not part"):
        train(recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruct__pretrained": "x"}, "this recipe has a pre-training of its own"),
        ({"pretrain__pretrained": "x", "pretrain__warm_start": {}}, "warm_start would change the projector"),
        ({"pretrain__shuffle": False, "pretrain__group_by_length": True}, "group_by_length changes the order"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tiny_recipe: Callable, changes: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny_recipe(**changes)
