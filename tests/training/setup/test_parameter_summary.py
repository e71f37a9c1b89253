"""The table of parts: counts of the trained parameters."""

from collections.abc import Callable

import pytest

from aligngpt.training.recipe import LoraRecipe, RecipeError, StageRecipe
from aligngpt.training.setup.freezing import freeze_all_but
from aligngpt.training.setup.lora import add_lora
from aligngpt.training.setup.parameter_summary import parts_of, parts_table


def stage(**settings: object) -> StageRecipe:
    return StageRecipe.model_validate({"data": "x.json", "batch_size": 4, "learning_rate": 1e-3} | settings)


def test_parts_are_counted_and_have_their_own_learning_rate(assembled: Callable) -> None:
    model, _ = assembled("llama")
    settings = stage(train=["language_model", "projector", "gate"], projector_learning_rate=5e-4)
    freeze_all_but(model, settings.train)
    rows = {row.part: row for row in parts_of(model, settings)}
    assert sum(row.parameters for row in rows.values()) == model.num_parameters()
    assert rows["language_model"].trained == rows["language_model"].parameters
    assert rows["vision_tower"].trained == rows["level_table"].trained == 0
    rates = {part: row.learning_rate for part, row in rows.items()}
    assert rates == {
        "vision_tower": None,
        "projector": 5e-4,
        "level_table": None,
        "gate": 5e-4,
        "language_model": 1e-3,
    }


def test_a_rate_of_a_single_part_takes_the_place_of_both(assembled: Callable) -> None:
    model, _ = assembled("llama")
    settings = stage(
        train=["language_model", "projector", "gate"],
        projector_learning_rate=5e-4,
        learning_rates={"gate": 1e-2, "language_model": 1e-5},
    )
    freeze_all_but(model, settings.train)
    rates = {row.part: row.learning_rate for row in parts_of(model, settings) if row.trained}
    assert rates == {"projector": 5e-4, "gate": 1e-2, "language_model": 1e-5}


def test_a_rate_of_a_part_that_is_frozen_is_refused(tiny_recipe: Callable) -> None:
    with pytest.raises(RecipeError, match=r"instruct: .*learning_rates: level_table does not train"):
        tiny_recipe(instruct__learning_rates={"level_table": 1e-3, "gate": 1e-3})


def test_of_a_language_model_with_adapters_only_these_train(assembled: Callable) -> None:
    model, _ = assembled("llama")
    settings = stage(train=["language_model"], lora=LoraRecipe(rank=2))
    add_lora(model, LoraRecipe(rank=2), seed=0)
    freeze_all_but(model, settings.train)
    row = next(row for row in parts_of(model, settings) if row.part == "language_model")
    assert 0 < row.trained < row.parameters / 2
    assert f"{row.trained:,}" in parts_table([row])


def test_a_model_without_alignment_has_no_rows_for_it(assembled: Callable) -> None:
    model, _ = assembled("llama", alignment="none")
    settings = stage(train=["projector"])
    freeze_all_but(model, settings.train)
    table = parts_table(parts_of(model, settings))
    assert "level table" not in table and "gate" not in table
    lines = table.splitlines()
    assert lines[0].split() == ["part", "trains", "parameters", "learning", "rate"]
    assert any(line.startswith("projector") and "trained" in line and line.endswith("0.001") for line in lines)
    assert any(line.startswith("vision tower") and "frozen" in line for line in lines)
