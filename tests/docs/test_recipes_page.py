"""docs/recipes.md is the page that the definition of recipes gives, and says something about every key."""

from typing import ClassVar

import pytest
import recipe_reference
from pydantic import BaseModel
from recipe_reference import PAGE, SECTIONS, descriptions, page

from aligngpt.training import recipe as definition
from aligngpt.training import recipe_data as data_sections


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/recipe_reference.py"


def test_every_section_is_on_the_page() -> None:
    names = [*vars(definition).values(), *vars(data_sections).values()]
    sections = {one for one in names if isinstance(one, type) and issubclass(one, BaseModel) and one.model_fields}
    assert sections == set(SECTIONS)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_no_description_is_of_a_key_that_is_gone(section: type[BaseModel]) -> None:
    assert set(descriptions(section)) == set(section.model_fields)


def test_a_key_without_a_description_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Undescribed(BaseModel):
        """A section.

        Attributes:
            one: described.
        """

        model_config: ClassVar = {}
        one: int = 1
        two: int = 2

    monkeypatch.setattr(recipe_reference, "SECTIONS", {**SECTIONS, Undescribed: "undescribed"})
    with pytest.raises(recipe_reference.UndescribedError, match=r"Undescribed\.two is not described"):
        page()
