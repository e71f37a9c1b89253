"""Instruction tuning that starts from the pre-training of another run."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from aligngpt.errors import AlignGPTError
from aligngpt.training.dry_run import plan
from aligngpt.training.origin import other_origin
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


def test_a_finished_pretraining_is_not_ignored(
    tiny_recipe: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_recipe(), ["pretrain"])
    without = tiny_recipe(pretrain=None, instruct__max_steps=1)
    said = rf"the one in .*{PRETRAINED_FILE} would be ignored; set instruct\.pretrained to that file, restore"
    with pytest.raises(RecipeError, match=said):
        train(without)
    assert re.search(said, plan(without)[0].problems[0])
    named = tiny_recipe(pretrain=None, instruct__max_steps=1, instruct__pretrained=str(tmp_path / "run" / "pretrain"))
    assert not plan(named)[0].problems
    train(named)
    assert "as drawn at random" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("alignment", "trained", "said"),
    [
        ("adaptive", [], "projector and levels start as drawn at random, and the levels stay so"),
        ("adaptive", ["level_table"], "projector and levels start as drawn at random"),
        ("none", [], "the projector starts as drawn at random"),
    ],
)
def test_an_untrained_start_is_told(
    tiny_recipe: Callable, capsys: pytest.CaptureFixture[str], alignment: str, trained: list[str], said: str
) -> None:
    recipe = tiny_recipe(
        pretrain=None,
        instruct__max_steps=1,
        instruct__train=["language_model", "projector", *trained],
        model__alignment=alignment,
    )
    (note,) = (one for one in plan(recipe)[0].notes if "at random" in one)
    assert note.startswith(f"the recipe has no pre-training and no instruct.pretrained: {said}")
    assert ("stay so" in note) == ("stay so" in said)
    train(recipe)
    assert f"warning: {note}" in capsys.readouterr().err


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


@pytest.fixture
def pretrained_alone(tiny_recipe: Callable, tmp_path: Path) -> Path:
    """The weights of a finished pre-training, without its folder."""
    train(tiny_recipe(output=str(tmp_path / "one"), pretrain__max_steps=1), ["pretrain"])
    return (tmp_path / "one" / "pretrain" / PRETRAINED_FILE).rename(tmp_path / "kept.safetensors")


def test_weights_trained_for_another_model_are_told(
    tiny_recipe: Callable, tmp_path: Path, pretrained_alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They fit in names and shapes, so that nothing else would say it."""
    starts = {"pretrain": None, "instruct__pretrained": str(pretrained_alone)}
    same = tiny_recipe(**starts)
    assert other_origin(same, "instruct") is None
    others = tiny_recipe(
        **starts, model__vision_feature_layer=-1, model__pad_images=False, output=str(tmp_path / "two")
    )
    told = (
        f"{pretrained_alone} was trained with vision_feature_layer -2 instead of -1, pad_images true instead of false"
    )
    (planned,) = plan(others)
    assert any(note.startswith(told) for note in planned.notes)
    assert not any("was trained with" in note for note in plan(same)[0].notes)
    capsys.readouterr()
    train(others)
    assert f"warning: {told}" in capsys.readouterr().err


def test_another_backbone_is_told_and_a_moved_one_is_not(
    tiny_recipe: Callable, tmp_path: Path, pretrained_alone: Path
) -> None:
    starts = {"pretrain": None, "instruct__pretrained": str(pretrained_alone)}
    source = Path(tiny_recipe().model.language_model)
    moved = shutil.copytree(source, tmp_path / "elsewhere" / source.name)
    assert other_origin(tiny_recipe(**starts, model__language_model=str(moved)), "instruct") is None
    weights = load_file(moved / "model.safetensors")
    save_file(
        {name: tensor + 1 for name, tensor in weights.items()}, moved / "model.safetensors", metadata={"format": "pt"}
    )
    again = other_origin(tiny_recipe(**starts, model__language_model=str(moved)), "instruct")
    assert again is not None and f"language_model {source.name} with other files than now" in again
    renamed = moved.rename(tmp_path / "another")
    other = other_origin(tiny_recipe(**starts, model__language_model=str(renamed)), "instruct")
    assert other is not None and f"language_model {source.name} instead of another" in other


def test_weights_put_in_the_place_of_a_pretraining_are_compared_too(
    tiny_recipe: Callable, tmp_path: Path, pretrained_alone: Path
) -> None:
    place = tmp_path / "put" / "pretrain"
    place.mkdir(parents=True)
    pretrained_alone.rename(place / PRETRAINED_FILE)
    told = other_origin(tiny_recipe(output=str(place.parent), model__vision_feature_layer=-1), "instruct")
    assert told is not None and "vision_feature_layer -2 instead of -1" in told


def test_weights_without_an_origin_are_taken_as_they_are(
    tiny_recipe: Callable, tmp_path: Path, pretrained_alone: Path
) -> None:
    save_file(load_file(pretrained_alone), tmp_path / "bare.safetensors")
    starts = {"pretrain": None, "instruct__pretrained": str(tmp_path / "bare.safetensors")}
    assert other_origin(tiny_recipe(**starts, model__vision_feature_layer=-1), "instruct") is None
