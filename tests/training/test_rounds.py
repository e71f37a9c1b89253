"""A stage with a time budget takes its minimum steps on a machine of any speed, and warns if that takes long."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from stopping import stopped

from aligngpt.training.loop.schedule import TrainingClock
from aligngpt.training.recipe import Recipe, RecipeError
from aligngpt.training.run import train

NO_TIME = 1e-6
"""A time budget that is used up before the first step ends, as on a very slow machine."""


def lines(recipe: Recipe, stage: str = "instruct") -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(recipe.output) / stage / "metrics.jsonl").read_text().splitlines()]


def test_minutes_that_are_too_few_still_give_the_steps_and_the_whole_schedule(
    tiny_recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"instruct__max_steps": 100, "instruct__minutes": NO_TIME, "instruct__min_steps": 8}
    recipe = tiny_recipe(pretrain=None, instruct__warmup_ratio=0.0, **options)
    (result,) = train(recipe)
    assert result.steps == 8
    rates = [line["learning_rate"] for line in lines(recipe)]
    assert rates == sorted(rates, reverse=True) and rates[0] > 0.009 and 0 < rates[-1] < 0.0005
    said = " ".join(capsys.readouterr().err.split())
    assert "the 8 steps of this stage will take about" in said


@pytest.mark.parametrize("kill", [None, 7])
def test_too_little_learnt_is_another_round(
    tiny_recipe: Callable[..., Recipe],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kill: int | None,
) -> None:
    recipe = tiny_recipe(
        pretrain=None,
        instruct__max_steps=100,
        instruct__minutes=NO_TIME,
        instruct__min_steps=5,
        instruct__learning_rate=1e-6,
        instruct__checkpoint_minutes=1e-9,
        instruct__validation={"data": str(data / "questions.json"), "until_accuracy": 0.9, "rounds": 2, "minutes": 60},
    )
    if kill is not None:
        stopped(recipe, monkeypatch, kill, "instruct")
    (result,) = train(recipe)
    assert result.steps == 10
    measured = [line["step"] for line in lines(recipe) if "validation_accuracy" in line]
    assert measured == [5, 10]
    said = " ".join(capsys.readouterr().err.split())
    assert "the target is 90%: training continues with round 2 of at most 2" in said
    assert "training ends anyway after 2 rounds" in said


def test_enough_learnt_ends_the_stage(tiny_recipe: Callable[..., Recipe], data: Path) -> None:
    learnt = {"data": str(data / "questions.json"), "until_accuracy": 1e-9, "minutes": 60}
    options = {"instruct__max_steps": 100, "instruct__minutes": NO_TIME, "instruct__min_steps": 30}
    (result,) = train(tiny_recipe(pretrain=None, instruct__validation=learnt, **options))
    assert result.steps == 30


def test_another_round_is_a_whole_schedule_over_the_steps_that_are_left() -> None:
    clock = TrainingClock(minutes=1)
    clock.agreed = 60
    assert clock.progress(700, 1000) == 1
    clock.next_round(700)
    assert clock.progress(700, 1000) == 0
    clock.agreed = 61
    assert clock.progress(850, 1000) == 0.5
    assert clock.progress(1000, 1000) == 1


def test_a_step_that_takes_all_of_the_time_is_followed_by_one_that_trains(tiny_recipe: Callable[..., Recipe]) -> None:
    """The learning rate of the first step of a warm-up is 0."""
    recipe = tiny_recipe(pretrain=None, instruct__minutes=NO_TIME, instruct__warmup_ratio=0.1)
    (result,) = train(recipe)
    assert result.steps == 2
    assert [line["learning_rate"] > 0 for line in lines(recipe)] == [False, True]


def test_time_left_is_used_beyond_the_steps() -> None:
    clock = TrainingClock(minutes=1, min_steps=10)
    clock.agreed = 30
    assert clock.progress(20, 1000) == 0.5  # half of the time is used, and twice the minimum steps are done
    assert clock.progress(4, 1000) == 0.4  # fewer than the minimum steps are done, so they limit the progress
    clock.agreed = 90
    assert clock.progress(9, 1000) == 0.9
    assert clock.progress(10, 1000) == 1
    clock.next_round(10)
    assert clock.progress(10, 1000) == 0
    assert clock.late(15, 0) is None
    clock.agreed = 300
    assert clock.late(15, 0) == pytest.approx(300 - 90 + 5 * 300 / 15)


def test_steps_and_rounds_are_for_minutes(tiny_recipe: Callable[..., Recipe], data: Path) -> None:
    with pytest.raises(RecipeError, match="min_steps requires minutes"):
        tiny_recipe(instruct__min_steps=3)
    with pytest.raises(RecipeError, match="until_accuracy requires minutes"):
        tiny_recipe(instruct__validation={"data": str(data / "questions.json"), "until_accuracy": 0.5})
