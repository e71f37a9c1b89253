"""Checks of the levels of a stage's samples: an embedding of the table that no sample has stays as it was drawn."""

from collections.abc import Sequence

import numpy as np

from aligngpt.data.records.sample import Sample
from aligngpt.data.samples.columns import columns_of
from aligngpt.training.feed.source_checks import needs_level
from aligngpt.training.recipe import Recipe, RecipeError, StageName


def check_levels(samples: Sequence[Sample], recipe: Recipe, name: StageName, field: str) -> None:
    """Check that no sample of `field` has a level above the model's number of levels.

    Raises:
        RecipeError: one has.
    """
    levels = columns_of(samples).levels
    if needs_level(recipe, name) and levels.max() > recipe.model.num_levels:
        top = samples[int(levels.argmax())]
        raise RecipeError(
            f"record {top.record} (id {top.id}) of {field} has level {top.level}, but model.num_levels is "
            f"{recipe.model.num_levels}; set it to the number of levels the data was made with"
        )


def levels_without_samples(samples: Sequence[Sample], recipe: Recipe, name: StageName) -> list[int]:
    """The levels 1…N that a stage is to train and that none of its samples has; none if it trains no levels."""
    stage = recipe.stage(name)
    if stage is None or not needs_level(recipe, name) or "level_table" not in stage.train:
        return []
    counts = np.bincount(columns_of(samples).levels.clip(min=0), minlength=recipe.model.num_levels + 1)
    return [level for level in range(1, recipe.model.num_levels + 1) if not counts[level]]


def untrained_top_level(missing: Sequence[int], recipe: Recipe, name: StageName) -> str | None:
    """Why a stage cannot train with these levels missing: the highest is the one that every answer rests on."""
    number = recipe.model.num_levels
    if number not in missing:
        return None
    found = next((level for level in range(number, 0, -1) if level not in missing), None)
    advice = f"set model.num_levels to {found}" if found and found > 1 else "make levels of the data's scores again"
    return (
        f"no sample of {name}.data has level {number}, the highest of model.num_levels, whose embedding all answers of "
        f"the finished model rest on; {advice}, or use data that has all levels"
    )


def untrained_levels_warning(missing: Sequence[int], recipe: Recipe) -> str | None:
    """What it means that these levels are missing; None if there are none, or if answers rest on the highest alone."""
    if not missing or recipe.model.alignment == "global":
        return None
    which = f"level{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
    return f"no sample has {which}: the embedding stays as it was drawn at random, and answers mix it in untrained"
