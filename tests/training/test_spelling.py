"""Suggestions for misspelt names."""

import pytest

from aligngpt.training.recipe_problems import closest


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("learning_rat", "learning_rate"),
        ("Learning_Rate", "learning_rate"),
        ("lerning_rate", "learning_rate"),
        ("Epoch", "epochs"),
        ("batch-size", "batch_size"),
        ("colour", None),
        ("", None),
    ],
)
def test_the_name_that_is_spelt_most_alike_is_found(name: str, meant: str | None) -> None:
    assert closest(name, ["learning_rate", "epochs", "batch_size"]) == meant
    assert closest(name, []) is None
