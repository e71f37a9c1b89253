"""The recipes for one's own data: what has to be filled in is asked for, they run, and the memory is as they say."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from full_size import LANGUAGE_MODELS

from aligngpt.training.dry_run import plan
from aligngpt.training.recipe import RecipeError, load_recipe, recipe_path
from aligngpt.training.run import train
from aligngpt.training.stage import model_folder

GIB = 2**30
# Size of the language model, image tokens, and the most that a stage may take on the device the recipe is for.
RECIPES = {
    "laptop": (134_515_008, 49, 4 * GIB),
    "small-gpu": (1_543_714_304, 196, 8 * 10**9),
}


@pytest.mark.parametrize("name", RECIPES)
def test_it_asks_for_the_data(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_path(name))
    problems = str(caught.value).partition(".yaml: ")[2]
    assert problems == "; ".join(f"{stage}.data: has no value, enter one" for stage in ("pretrain", "instruct"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_to_fill_in_is_marked(name: str) -> None:
    lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
    empty = [line.split()[0] for line in lines if line.partition("#")[0].strip() in ("data:", "image_root:")]
    marked = [line.split()[0] for line in lines if "# <- " in line]
    assert empty == marked == ["data:", "image_root:"] * 2


@pytest.mark.medium
@pytest.mark.parametrize("name", RECIPES)
def test_it_fits_on_the_device_it_is_for(name: str, data: Path, full_size_folder: Callable[[str], Path]) -> None:
    settings = [f"pretrain.data={data / 'captions.json'}", f"instruct.data={data / 'questions.json'}"]
    model = load_recipe(recipe_path(name), settings).model
    settings += [f"model.vision_tower={full_size_folder(model.vision_tower)}"]
    settings += [f"model.language_model={full_size_folder(model.language_model)}"]
    size, image_tokens, limit = RECIPES[name]
    hidden = LANGUAGE_MODELS[model.language_model]().hidden_size
    pretrain, instruct = plan(load_recipe(recipe_path(name), settings))
    sizes = {row.part: row.parameters for row in pretrain.parts}
    assert (sizes["language_model"], sizes["level_table"]) == (size, 8 * hidden)
    for stage in (pretrain, instruct):
        assert stage.data is not None and stage.data.tokens > image_tokens
        assert sum(stage.memory) < limit


@pytest.mark.medium
@pytest.mark.parametrize("name", RECIPES)
def test_it_runs_from_end_to_end(
    name: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    language_folder: Callable[[str], Path],
    tower_folder: Callable[[str], Path],
) -> None:
    """The recipe's own settings, except for backbones, data, number of steps and loader processes."""
    if name == "small-gpu" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))
    settings = [
        f"model.vision_tower={tower_folder('clip' if name == 'laptop' else 'siglip')}",
        f"model.language_model={language_folder('llama_wide')}",
        f"pretrain.data={data / 'captions.json'}",
        f"instruct.data={data / 'questions.json'}",
        f"output={tmp_path / 'run'}",
    ]
    settings += [f"{stage}.{field}" for stage in ("pretrain", "instruct") for field in ("max_steps=2", "workers=0")]
    recipe = load_recipe(recipe_path(name), settings)
    assert [(result.stage, result.steps) for result in train(recipe)] == [("pretrain", 2), ("instruct", 2)]
    assert (model_folder(recipe) / "model.safetensors").is_file()
