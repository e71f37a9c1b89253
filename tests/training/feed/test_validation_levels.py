"""The levels of validation data are checked before training, and levels are only used where the model has any."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from aligngpt.data.batches.collate import Collator
from aligngpt.data.rejects import Rejects, TooManyRejects
from aligngpt.training.feed.datasets import training_data, training_samples, validation_of
from aligngpt.training.recipe import Recipe, RecipeError
from aligngpt.training.run import train

LEVELS = 4


def captions_with(path: Path, levels: Sequence[int | None]) -> Path:
    """A file of captions with these levels, which count from 0."""
    records = [{"id": str(n), "image": f"{n}.png", "caption": "a red circle"} for n in range(len(levels))]
    given = [{} if level is None else {"similarity": level} for level in levels]
    path.write_text(json.dumps([record | one for record, one in zip(records, given, strict=True)]))
    return path


def model_of(recipe: Recipe, **changes: Any) -> dict[str, Any]:
    return recipe.model.model_dump(exclude_defaults=True) | changes


@pytest.fixture
def recipe(tiny_recipe: Callable, data: Path) -> Callable[..., Recipe]:
    """A pre-training recipe with validation data that have these levels."""

    def make(validation: Sequence[int | None], alignment: str = "adaptive", **changes: Any) -> Recipe:
        shown = captions_with(data / "shown.json", validation)
        model = model_of(tiny_recipe(), alignment=alignment, num_levels=LEVELS)
        options = {"pretrain__validation": {"data": str(shown)}, "pretrain__data": str(data / "learned.json")}
        if alignment == "none":
            options["pretrain__train"] = ["projector"]
        made: Recipe = tiny_recipe(model=model, instruct=None, **options | changes)
        return made

    captions_with(data / "learned.json", [0, 1, 2, 3] * 2)
    return make


def validated(recipe: Recipe, assembled: Callable) -> Any:
    engine, processor = assembled("qwen2", alignment=recipe.model.alignment)
    samples = training_samples(recipe, "pretrain", Rejects(None))
    training = training_data(samples, recipe, "pretrain", engine, processor)
    return validation_of(recipe, "pretrain", training, Collator(processor.tokenizer.pad_token_id))


def test_a_level_the_model_does_not_have_stops_the_run_before_its_first_step(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"of pretrain\.validation\.data has level 8, but model\.num_levels is 4"):
        train(recipe([0, 7, 1, 2]))
    assert not list(tmp_path.rglob("model.safetensors"))


@pytest.mark.parametrize("levels", [[None] * 4, [0, None, 1, None]])
def test_images_without_a_level_are_refused(
    levels: list[int | None], recipe: Callable[..., Recipe], assembled: Callable
) -> None:
    without = levels.count(None)
    message = (
        rf"{without} records of pretrain\.validation\.data have an image but no level .*pretrain\.validation\.data"
    )
    with pytest.raises(TooManyRejects, match=message):
        validated(recipe(levels), assembled)


def test_without_levels_in_the_model_those_of_the_records_are_not_used(
    recipe: Callable[..., Recipe], data: Path, assembled: Callable
) -> None:
    captions_with(data / "learned.json", [0, None, 2, None, 99, None, 0, 0])
    without = recipe([None, 3, 99, None], alignment="none")
    validation = validated(without, assembled)
    assert [row[0].level for row, _ in map(validation.dataset.row, range(4))] == [None] * 4
    (result,) = train(without)
    assert result.steps == 4
