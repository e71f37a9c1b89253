"""The recipes that come with the package, as `aligngpt recipe` lists and prints them."""

from pathlib import Path

import pytest
import yaml

from aligngpt.training.recipe_files import RecipeError, recipe_content, recipe_path
from aligngpt.training.shipped_recipes import recipe_text, shipped_recipes

NAMES = sorted(path.stem for path in recipe_path("quickstart").parent.glob("*.yaml"))


def test_all_recipes_are_listed_each_with_a_remark() -> None:
    assert sorted(shipped_recipes()) == NAMES
    assert all(shipped_recipes().values())


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_recipe_is_the_recipe_and_needs_no_other_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(recipe_text(name), encoding="utf-8")
    # Not validated: recipes for one's own data leave the files to be entered.
    assert recipe_content(tmp_path / "mine.yaml") == recipe_content(recipe_path(name))
    assert "base" not in yaml.safe_load(recipe_text(name))
    assert recipe_text(f"{name}.yaml") == recipe_text(name)
    assert recipe_text(name).startswith(f"# {shipped_recipes()[name]}\n")


def test_a_recipe_without_a_base_is_printed_with_its_comments() -> None:
    assert recipe_text("aligngpt-7b") == recipe_path("aligngpt-7b").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "said"), [("aligngpt7b", "did you mean aligngpt-7b?"), ("xyz", "package; The recipes are aligngpt-13b, ")]
)
def test_an_unknown_name_is_told_the_names_there_are(name: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_text(name)
    assert said in str(caught.value)


def test_a_name_is_not_a_path() -> None:
    with pytest.raises(RecipeError):
        recipe_text("../recipes/aligngpt-7b")
