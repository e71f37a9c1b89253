"""Instruction tuning that starts from the pre-training of another run."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aligngpt.errors import AlignGPTError
from aligngpt.model.foreign.checkpoint_formats import OriginalLayout
from aligngpt.model.foreign.conversion import convert, to_original
from aligngpt.model.foreign.weight_files import write_shards
from aligngpt.training.dry_run import plan
from aligngpt.training.origin import other_origin
from aligngpt.training.recipe import Recipe, RecipeError
from aligngpt.training.run import train
from aligngpt.training.setup.loading import load_model
from aligngpt.training.setup.pretrained_parts import PRETRAINED_FILE
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
        ({"pretrain__fresh_level_table": True}, "only instruct can draw a new level table"),
        (
            {"instruct__fresh_level_table": True, "model__alignment": "none"},
            r"fresh_level_table: with model\.alignment none there is no level table; set it to false",
        ),
        ({"pretrain__shuffle": False, "pretrain__group_by_modality": True}, "group_by_modality changes the order"),
        (
            {"pretrain__group_by_length": True, "pretrain__group_by_modality": True},
            "group_by_length and group_by_modality both decide which rows form a step; set one of them",
        ),
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


@pytest.fixture
def first_stage(tiny_recipe: Callable, tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Tensor]]]:
    """A folder converted from a first stage of the original code, or of LLaVA, and the tensors in it by our names."""

    def make(*, levels: bool = True) -> tuple[Path, dict[str, Tensor]]:
        ours = {
            "model.multi_modal_projector.linear_1.weight": torch.randn(32, 24),
            "model.multi_modal_projector.linear_1.bias": torch.randn(32),
            "model.multi_modal_projector.linear_2.weight": torch.randn(32, 32),
            "model.multi_modal_projector.linear_2.bias": torch.randn(32),
            **({"model.alignment.levels": torch.randn(8, 32)} if levels else {}),
        }
        file = tmp_path / ("mm_projector_align.bin" if levels else "mm_projector.bin")
        torch.save({OriginalLayout.rename_back(name): tensor for name, tensor in ours.items()}, file)
        model = tiny_recipe().model
        convert(file, tmp_path / "stage-1", vision_tower=model.vision_tower, language_model=model.language_model)
        return tmp_path / "stage-1", ours

    return make


def loaded(recipe: Recipe) -> dict[str, Tensor]:
    return load_model(recipe, "instruct")[0].state_dict()


def sharded(folder: Path) -> None:
    """Save a model folder again, its weights in several files."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    write_shards(folder, ({name: tensors[name] for name in names[start::3]} for start in range(3)), 3)


@pytest.mark.parametrize("files", ["one file", "several files"])
def test_a_converted_first_stage_is_where_instruction_tuning_starts(
    tiny_recipe: Callable, first_stage: Callable, files: str
) -> None:
    folder, tensors = first_stage()
    if files == "several files":
        sharded(folder)
    recipe = tiny_recipe(pretrain=None, instruct__pretrained=str(folder))
    assert not plan(recipe)[0].problems and other_origin(recipe, "instruct") is None
    found, fresh = loaded(recipe), loaded(tiny_recipe(pretrain=None))
    for name, tensor in found.items():
        assert torch.equal(tensor, tensors.get(name, fresh[name])), name
    before = fingerprint_of(recipe, "instruct", recipe.instruct)
    (shard,) = (one for one in folder.glob("*.safetensors") if "model.alignment.levels" in load_file(one))
    held = load_file(shard)
    save_file(held | {"model.alignment.levels": held["model.alignment.levels"] + 1}, shard, metadata={"format": "pt"})
    assert fingerprint_of(recipe, "instruct", recipe.instruct) != before


@pytest.mark.medium
def test_a_trained_model_is_where_another_instruction_tuning_starts(tiny_recipe: Callable, tmp_path: Path) -> None:
    one = tiny_recipe(output=str(tmp_path / "one"))
    train(one)
    again = tiny_recipe(pretrain=None, instruct__pretrained=str(model_folder(one)), instruct__max_steps=1)
    theirs = load_file(model_folder(one) / "model.safetensors")
    found = loaded(again)
    for name in ("model.alignment.levels", "model.multi_modal_projector.linear_2.weight"):
        assert torch.equal(found[name], theirs[name])
    train(again)
    after = load_file(model_folder(again) / "model.safetensors")
    assert torch.equal(after["model.alignment.levels"], theirs["model.alignment.levels"])


def test_levels_that_nothing_has_trained_are_told(
    tiny_recipe: Callable, first_stage: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, tensors = first_stage(levels=False)
    recipe = tiny_recipe(pretrain=None, instruct__pretrained=str(folder), instruct__max_steps=1)
    told = f"the levels of {folder} are as drawn at random and stay so"
    assert any(note.startswith(told) for note in plan(recipe)[0].notes)
    train(recipe)
    assert f"warning: {told}" in capsys.readouterr().err
    plain = tiny_recipe(pretrain=None, instruct__pretrained=str(folder), model__alignment="none")
    assert other_origin(plain, "instruct") is None
    found = loaded(plain)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    further = tiny_recipe(pretrain__pretrained=str(folder))
    assert other_origin(further, "pretrain") is None


def test_levels_that_are_left_out_are_told(tiny_recipe: Callable, first_stage: Callable) -> None:
    folder, _ = first_stage()
    plain = tiny_recipe(pretrain=None, instruct__pretrained=str(folder), model__alignment="none")
    told = other_origin(plain, "instruct")
    assert told is not None and "beside which its projector trained, are not used" in told


def test_a_model_without_levels_is_no_start_with_them(tiny_recipe: Callable, tmp_path: Path) -> None:
    plain = tiny_recipe(output=str(tmp_path / "plain"), model__alignment="none", instruct__max_steps=1)
    train(plain)
    recipe = tiny_recipe(pretrain=None, instruct__pretrained=str(model_folder(plain)))
    said = r"has no level table, which model\.alignment adaptive needs; set model\.alignment to none"
    with pytest.raises(AlignGPTError, match=said):
        loaded(recipe)
    loaded(tiny_recipe(pretrain=None, instruct__pretrained=str(model_folder(plain)), model__alignment="none"))
    # Where a new table is drawn, none is needed; that it stays as drawn is told unless it trains.
    drawn = {"pretrain": None, "instruct__pretrained": str(model_folder(plain)), "instruct__fresh_level_table": True}
    assert "model.alignment.levels" in loaded(tiny_recipe(**drawn))
    told = other_origin(tiny_recipe(**drawn), "instruct")
    assert told is not None and "fresh_level_table: the new levels stay as drawn" in told
    trained = tiny_recipe(**drawn, instruct__train=["language_model", "level_table", "gate"])
    assert "fresh_level_table" not in (other_origin(trained, "instruct") or "")


def test_a_model_of_another_size_or_with_other_settings_is_told(tiny_recipe: Callable, first_stage: Callable) -> None:
    folder, _ = first_stage()
    fewer = tiny_recipe(pretrain=None, instruct__pretrained=str(folder), model__num_levels=4)
    with pytest.raises(
        AlignGPTError, match=r"stage-1 does not fit the model: model\.alignment\.levels is \(8, 32\), exp"
    ):
        loaded(fewer)
    other = tiny_recipe(pretrain=None, instruct__pretrained=str(folder), model__vision_feature_layer=-1)
    told = other_origin(other, "instruct")
    assert told is not None and told.startswith(f"{folder} was trained with vision_feature_layer -2 instead of -1")


def test_weights_of_other_code_are_to_be_converted_first(
    tiny_recipe: Callable, first_stage: Callable, tmp_path: Path
) -> None:
    folder, _ = first_stage()
    left = tmp_path / "left"
    left.mkdir()
    file = (tmp_path / "mm_projector_align.bin").rename(left / "mm_projector_align.bin")
    to_original(folder, tmp_path / "theirs", vision_tower="tower")
    for named in (file, left, tmp_path / "theirs"):
        recipe = tiny_recipe(pretrain=None, instruct__pretrained=str(named))
        (problem,) = plan(recipe)[0].problems
        assert problem.startswith(f"instruct.pretrained: {named} has the format of other code; convert it with")
