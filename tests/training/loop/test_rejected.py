"""Samples found unusable during training: counted once, whichever process reads them, and the limit applies."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from several_processes import run
from stopping import stopped

from aligngpt.data.rejects import TooManyRejects
from aligngpt.training.recipe import Recipe
from aligngpt.training.run import train
from aligngpt.training.stage import stage_result


@pytest.fixture
def damaged(data: Path) -> Path:
    """Images 0 and 1 of 12 have a valid header, which is all that is checked in advance, but no data after it."""
    for name in ("0.png", "1.png"):
        whole = (data / name).read_bytes()
        (data / name).write_bytes(whole[: len(whole) // 2])
    return data


def rejected(recipe: Recipe, stage: str = "pretrain") -> list[str]:
    lines = (Path(recipe.output) / stage / "rejects.jsonl").read_text().splitlines()
    return sorted(json.loads(line)["id"] for line in lines)


@pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.medium)])
def test_the_limit_holds_with_any_number_of_workers(
    tiny_recipe: Callable[..., Recipe], damaged: Path, workers: int
) -> None:
    options = {"pretrain__workers": workers, "pretrain__max_steps": 9, "instruct": None}
    with pytest.raises(TooManyRejects, match=r"2 of 12 records cannot be used .*truncated 2"):
        train(tiny_recipe(pretrain__max_reject_share=0.1, **options))


@pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.medium)])
def test_each_is_counted_once(tiny_recipe: Callable[..., Recipe], damaged: Path, workers: int) -> None:
    recipe = tiny_recipe(
        pretrain__workers=workers, pretrain__max_steps=12, pretrain__max_reject_share=0.5, instruct=None
    )
    (result,) = train(recipe)
    assert result.rejects == 2
    assert rejected(recipe) == ["0", "1"]


@pytest.mark.medium
def test_a_stage_that_is_resumed_has_those_it_had(
    tiny_recipe: Callable[..., Recipe], damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"pretrain__max_steps": 6, "pretrain__max_reject_share": 0.5, "instruct": None}
    recipe = tiny_recipe(pretrain__checkpoint_minutes=1e-9, **options)
    stopped(recipe, monkeypatch, 5, "pretrain")
    assert rejected(recipe) == ["0", "1"]
    train(recipe)
    assert rejected(recipe) == ["0", "1"]
    result = stage_result(recipe, "pretrain")
    assert result is not None and result.rejects == 2


@pytest.mark.slow
def test_two_processes_count_together(recipe_of: Callable[..., Recipe], damaged: Path, tmp_path: Path) -> None:
    options = {"pretrain__max_steps": 4, "instruct": None}
    recipe = recipe_of("two", pretrain__max_reject_share=0.5, **options)
    output = run(recipe, tmp_path / "two.yaml")
    result = stage_result(recipe, "pretrain")
    assert result is not None and result.rejects == 2, output
    assert rejected(recipe) == ["0", "1"]
    assert not list(Path(recipe.output, "pretrain").glob("rejects-*"))
    strict = recipe_of("strict", pretrain__max_reject_share=0.1, **options)
    output = run(strict, tmp_path / "strict.yaml")
    assert "2 of 12 records cannot be used" in " ".join(output.split())
    assert stage_result(strict, "pretrain") is None
