"""Recipes: the shipped ones load, errors name the field, and single values can be overridden."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from aligngpt.training.recipe import Recipe, RecipeError, load_recipe, make_recipe, recipe_path

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.fixture
def content() -> dict[str, Any]:
    """A minimal recipe."""
    return {
        "model": {"vision_tower": "tower", "language_model": "language"},
        "instruct": {"data": "data.json", "train": ["projector"], "batch_size": 4, "learning_rate": 0.001},
        "output": "out",
    }


@pytest.fixture
def recipe_file(tmp_path: Path, content: dict[str, Any]) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_ships_loads(path: Path) -> None:
    to_fill_in = ["pretrain.data=captions.json", "instruct.data=questions.json"]
    recipe = load_recipe(path, to_fill_in if path.stem in ("laptop", "small-gpu") else [])
    assert recipe.pretrain is not None and recipe.instruct is not None
    assert recipe.pretrain.train == ("projector", "level_table")
    assert recipe.instruct.train == ("language_model", "projector", "gate")
    assert recipe_path(path.stem).samefile(path)


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {"quickstart", "aligngpt-7b", "aligngpt-13b"}


@pytest.mark.parametrize("name", ["aligngpt-7b", "aligngpt-13b"])
def test_published_settings(name: str) -> None:
    """Appendix of arXiv 2405.14129: learning rates and batch sizes of the two stages."""
    recipe = load_recipe(recipe_path(name))
    assert recipe.pretrain is not None and recipe.pretrain.warm_start is None
    assert recipe.instruct is not None and recipe.instruct.lora is None
    assert recipe.instruct.questions_per_prefix == 1
    assert recipe.pretrain is not None and recipe.instruct is not None
    assert (recipe.pretrain.learning_rate, recipe.pretrain.batch_size) == (1e-3, 256)
    assert (recipe.instruct.learning_rate, recipe.instruct.batch_size) == (2e-5, 128)
    assert recipe.model.num_levels == 8


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("instruct", "learning_rat", 1),
        ("model", "levels", 8),
        ("instruct", "batch_size", 0),
        ("instruct", "learning_rate", -1e-3),
        ("instruct", "learning_rate", "fast"),
        ("instruct", "warmup_ratio", 1.0),
        ("instruct", "precision", "float16"),
        ("instruct", "schedule", "step"),
        ("instruct", "train", []),
        ("instruct", "train", ["projektor"]),
        ("instruct", "max_reject_share", 1.5),
        ("instruct", "minutes", 0),
        ("instruct", "chat_template", "mine.jinja"),
        ("instruct", "adam_betas", [0.9, 1.0]),
        ("model", "num_levels", 1),
        ("model", "alignment", "adaptiv"),
    ],
)
def test_wrong_field_is_named_with_its_file(
    recipe_file: Path, content: dict[str, Any], section: str, field: str, value: object
) -> None:
    content[section][field] = value
    recipe_file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file)
    assert str(recipe_file) in str(caught.value)
    assert f"{section}.{field}" in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_an_error(content: dict[str, Any], seed: int) -> None:
    with pytest.raises(RecipeError, match=r"seed: Input should be (greater|less) than"):
        make_recipe(content | {"seed": seed})


def test_an_output_below_a_tilde_is_told_the_whole_path(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RecipeError) as caught:
        make_recipe(content | {"output": "~/runs/mine"})
    assert f"write the whole path, {tmp_path / 'runs' / 'mine'}" in str(caught.value)
    assert make_recipe(content | {"output": "runs/~mine"}).output == "runs/~mine"


@pytest.mark.parametrize("name", ["model", "output"])
def test_missing_section_is_named(content: dict[str, Any], name: str) -> None:
    del content[name]
    with pytest.raises(RecipeError, match=f"recipe: {name}: Field required"):
        make_recipe(content)


@pytest.mark.parametrize("name", ["data", "train", "batch_size", "learning_rate"])
def test_missing_field_is_named(content: dict[str, Any], name: str) -> None:
    del content["instruct"][name]
    with pytest.raises(RecipeError, match=rf"instruct\.{name}: Field required"):
        make_recipe(content)


def test_every_problem_is_told_at_once(content: dict[str, Any]) -> None:
    content["model"]["num_levels"] = 0
    content["instruct"]["batch_size"] = "many"
    with pytest.raises(RecipeError, match=r"model\.num_levels.*instruct\.batch_size"):
        make_recipe(content)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("instruct.learning_rat=1", "instruct.learning_rat: unknown; did you mean learning_rate?"),
        ("model.levels=4", "model.levels: unknown; did you mean num_levels?"),
        ("instruct.lora.Rank=8", "instruct.lora.Rank: unknown; did you mean rank?"),
        ("outputs=here", "outputs: unknown; did you mean output?"),
        ("instruct.lora.xyz=8", "instruct.lora.xyz: unknown; known fields: rank, alpha, dropout, bits, merge"),
    ],
)
def test_a_misspelt_key_is_told_what_may_have_been_meant(recipe_file: Path, setting: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, [setting])
    assert str(caught.value) == f"{recipe_file}: {expected}"


@pytest.mark.parametrize("name", ["learning_rate", "minutes", "max_grad_norm", "weight_decay"])
@pytest.mark.parametrize("number", [".inf", ".nan"])
def test_a_number_that_is_none_is_refused(recipe_file: Path, name: str, number: str) -> None:
    """Infinity passes every lower bound."""
    with pytest.raises(RecipeError, match=rf"instruct\.{name}: "):
        load_recipe(recipe_file, [f"instruct.{name}={number}"])


def test_the_finished_model_has_the_format_it_was_trained_with(content: dict[str, Any]) -> None:
    content["model"] |= {"chat_template": "chatml", "pad_images": True}
    content["instruct"] |= {"chat_template": "chatml", "pad_images": True}
    make_recipe(content)
    for name, other in (("chat_template", "vicuna"), ("pad_images", False)):
        changed = content | {"instruct": content["instruct"] | {name: other}}
        with pytest.raises(
            RecipeError, match=rf"instruct\.{name} is {other} and model\.{name} .*; set model\.{name} instead"
        ):
            make_recipe(changed)


def test_a_micro_batch_has_one_limit(content: dict[str, Any]) -> None:
    content["instruct"] |= {"micro_batch_size": 1, "micro_batch_tokens": 4096}
    with pytest.raises(RecipeError, match="micro_batch_size and micro_batch_tokens both limit a forward pass; set one"):
        make_recipe(content)


def test_micro_batches_must_fill_the_batch(content: dict[str, Any]) -> None:
    content["instruct"]["micro_batch_size"] = 3
    with pytest.raises(
        RecipeError, match=r"recipe: instruct: batch_size must be a multiple of micro_batch_size, found \d+ and 3$"
    ):
        make_recipe(content)


@pytest.mark.parametrize(
    "written", ["model: [1, 2", "\tmodel: 1", "", "just text", "- a\n- b", b"\xff\xfe\x00"], ids=repr
)
def test_file_that_is_no_recipe_is_named(tmp_path: Path, written: str | bytes) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(written.encode() if isinstance(written, str) else written)
    with pytest.raises(RecipeError, match=r"broken\.yaml"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("added", "key"), [("output: elsewhere\n", "output"), ("pretrain: {epochs: 5, data: a.json, epochs: 1}", "epochs")]
)
def test_a_key_that_is_given_twice_is_named_with_its_line(recipe_file: Path, added: str, key: str) -> None:
    text = recipe_file.read_text(encoding="utf-8")
    recipe_file.write_text(text + added, encoding="utf-8")
    with pytest.raises(RecipeError, match=rf"mine\.yaml .*{key} is given twice") as caught:
        load_recipe(recipe_file)
    assert f"line {len(text.splitlines()) + 1}" in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(RecipeError):
        load_recipe(tmp_path)  # a folder


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("instruct.learning_rate=2e-5", lambda recipe: recipe.instruct.learning_rate == 2e-5),
        ("instruct.learning_rate=0.01", lambda recipe: recipe.instruct.learning_rate == 0.01),
        ("instruct.train=[gate, projector]", lambda recipe: recipe.instruct.train == ("gate", "projector")),
        ("instruct.minutes=null", lambda recipe: recipe.instruct.minutes is None),
        ("instruct.group_by_length=true", lambda recipe: recipe.instruct.group_by_length is True),
        ("instruct.adam_betas=[0.9, 0.95]", lambda recipe: recipe.instruct.adam_betas == (0.9, 0.95)),
        ("model.alignment=none", lambda recipe: recipe.model.alignment == "none"),
        ("output=some/where=else", lambda recipe: recipe.output == "some/where=else"),
        (" seed = 7", lambda recipe: recipe.seed == 7),
    ],
)
def test_override_replaces_one_value(recipe_file: Path, override: str, found: Any) -> None:
    assert not found(load_recipe(recipe_file)) or "null" in override
    assert found(load_recipe(recipe_file, [override]))


def test_overrides_can_make_a_section(recipe_file: Path) -> None:
    wanted = ["data=captions.json", "train=[projector]", "batch_size=2", "learning_rate=1e-3"]
    recipe = load_recipe(recipe_file, [f"pretrain.{setting}" for setting in wanted])
    assert recipe.pretrain is not None and recipe.pretrain.learning_rate == 1e-3


def test_overrides_can_make_a_section_that_is_null(recipe_file: Path) -> None:
    settings = ["instruct.train=[language_model]", "instruct.lora=null", "instruct.lora.rank=8"]
    recipe = load_recipe(recipe_file, settings)
    assert recipe.instruct is not None and recipe.instruct.lora is not None and recipe.instruct.lora.rank == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("instruct.learning_rate", "section.field=value"),
        ("=3", "section.field=value"),
        ("output.deep=3", "output is a value"),
        ("instruct.train=[gate", "instruct.train"),
        ("instruct.learning_rte=1e-3", "instruct.learning_rte"),
        ("instrct.epochs=1", "instrct"),
    ],
)
def test_wrong_override_is_named(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, [override])
    assert message in str(caught.value)


def test_numbers_without_a_decimal_point_are_numbers(tmp_path: Path, recipe_file: Path) -> None:
    text = recipe_file.read_text(encoding="utf-8").replace("0.001", "2e-5")
    recipe_file.write_text(text + "seed: 3\n", encoding="utf-8")
    recipe = load_recipe(recipe_file)
    assert recipe.instruct is not None and recipe.instruct.learning_rate == 2e-5


def test_texts_that_begin_with_a_digit_stay_texts(content: dict[str, Any]) -> None:
    content["output"] = "3e"
    content["instruct"]["data"] = "2024-release.json"
    recipe = make_recipe(content)
    assert recipe.output == "3e"
    assert recipe.instruct is not None and recipe.instruct.data == "2024-release.json"


def test_text_fields_that_look_like_numbers_stay_texts(content: dict[str, Any]) -> None:
    """`7e3` is a valid name for an output folder."""
    content["output"] = "7e3"
    assert make_recipe(content).output == "7e3"


def test_recipe_cannot_be_changed(content: dict[str, Any]) -> None:
    recipe: Recipe = make_recipe(content)
    with pytest.raises(ValidationError):
        recipe.seed = 3  # type: ignore[misc]
    assert recipe.instruct is not None
    with pytest.raises(ValidationError):
        recipe.instruct.batch_size = 3  # type: ignore[misc]
    assert recipe.stage("pretrain") is None and recipe.stage("instruct") is recipe.instruct


def test_a_recipe_is_its_base_but_for_what_it_says(recipe_file: Path, content: dict[str, Any]) -> None:
    above = recipe_file.with_name("above.yaml")
    above.write_text("base: mine.yaml\ninstruct:\n  learning_rate: 3.0e-5\nmodel:\n  chat_template: null\n")
    base, found = load_recipe(recipe_file), load_recipe(above)
    assert found.instruct is not None and base.instruct is not None
    assert found.instruct.learning_rate == 3e-5
    assert found.instruct.model_copy(update={"learning_rate": base.instruct.learning_rate}) == base.instruct
    assert found.pretrain == base.pretrain and found.model.chat_template is None


@pytest.mark.parametrize("base", ["above.yaml", "nowhere.yaml", "[1]"])
def test_a_base_that_is_no_other_recipe_is_an_error(tmp_path: Path, base: str) -> None:
    path = tmp_path / "above.yaml"
    path.write_text(f"base: {base}\n")
    with pytest.raises(RecipeError, match=r"above|nowhere"):
        load_recipe(path)


@pytest.mark.parametrize("part", ["vision_tower", "language_model", "gate"])
def test_what_pretraining_would_lose_is_refused(recipe_file: Path, part: str) -> None:
    with pytest.raises(RecipeError, match=rf"passed to instruction tuning; name {part} in instruct.train"):
        stage = f"{{data: x.json, batch_size: 4, learning_rate: 0.1, train: [projector, {part}]}}"
        load_recipe(recipe_file, [f"pretrain={stage}"])


def test_a_key_without_a_value_is_named(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"mine\.yaml: instruct\.data: has no value, enter one; seed: has no value"):
        load_recipe(recipe_file, ["instruct.data=", "seed="])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("instruct.schedule=cosin", "instruct.schedule: Input should be .*, found 'cosin'; did you mean cosine\\?"),
        ("instruct.schedule=7", "instruct.schedule: Input should be .*, found 7$"),
        ("instruct.epochs=-1", "instruct.epochs: Input should be greater than 0, found -1$"),
        ("instruct.train=[]", "instruct.train: name at least one part to train$"),
    ],
)
def test_a_wrong_value_is_told_with_the_value(recipe_file: Path, setting: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(recipe_file, [setting])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mime.yaml", r"no such file; did you mean .*mine\.yaml\?"),
        ("aligngpt-7b", "no such file; `aligngpt recipe aligngpt-7b --out aligngpt-7b.yaml` writes the one"),
        ("aligngpt-7b.yaml", "no such file; `aligngpt recipe aligngpt-7b --out aligngpt-7b.yaml` writes the one"),
        ("xyz.yaml", "no such file; `aligngpt recipe` lists the recipes"),
    ],
)
def test_a_missing_recipe_is_told_what_there_is(recipe_file: Path, name: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(recipe_file.with_name(name))
