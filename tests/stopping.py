"""A training run stopped after a given step, as by a kill."""

from typing import Any

import pytest
from transformers import TrainerCallback

from aligngpt.training import stage_run as module
from aligngpt.training.recipe import Recipe
from aligngpt.training.run import train


class Stop(TrainerCallback):
    """Simulates a kill after a given step: nothing runs after it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def stopped(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, step: int, stage: str) -> None:
    """Run a recipe and stop it after the given step of a stage."""
    make = module.StageTrainer

    def make_stopping(settings: Any, *args: Any, **kwargs: Any) -> Any:
        trainer = make(settings, *args, **kwargs)
        if settings == recipe.stage(stage):
            trainer.add_callback(Stop(step))
        return trainer

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "StageTrainer", make_stopping)
        train(recipe)
