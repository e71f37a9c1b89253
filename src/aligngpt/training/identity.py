"""Whose run a stage's folder holds: what decides a stage's result, as one number, and what was decided once."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from aligngpt.data.prepared import content_of
from aligngpt.device import supports_bfloat16
from aligngpt.files import atomic_write
from aligngpt.training.checkpoints import newest_checkpoint
from aligngpt.training.recipe import Recipe, RecipeError, StageName, StageRecipe

WITHOUT_EFFECT = {"checkpoint_minutes", "log_steps", "workers", "max_reject_share", "validation"}
"""Settings of a stage that do not change what it leaves."""


def fingerprint_of(recipe: Recipe, name: StageName, stage: StageRecipe) -> str:
    """A number that is another one when the model, a setting with effect, the seed or a file of data is.

    Raises:
        SourceError: a file of data cannot be read.
    """
    contents = [content_of(Path(source.data)) for source in stage.sources]
    settings: dict[str, Any] = {
        # Without defaults, so that a setting which is new to the program leaves old runs what they are.
        "model": recipe.model.model_dump(mode="json", exclude_defaults=True),
        "stage": stage.model_dump(mode="json", exclude=WITHOUT_EFFECT, exclude_defaults=True),
        "seed": recipe.seed,
        "data": contents[0] if isinstance(stage.data, str) else contents,
    }
    if stage.validation is not None and stage.validation.share is not None:
        settings["held_out"] = stage.validation.share
    if name == "instruct" and recipe.pretrain is not None:
        settings["pretrain"] = fingerprint_of(recipe, "pretrain", recipe.pretrain)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def claim(folder: Path, fingerprint: str) -> None:
    """Mark the folder as this run's, so that checkpoints of other settings are never taken for its own."""
    path = folder / "fingerprint"
    if path.is_file() and path.read_text() != fingerprint:
        if newest_checkpoint(folder / "checkpoints") is not None:
            raise RecipeError(
                f"{folder} holds an unfinished stage with other settings or data; choose another output, or remove "
                "that folder to begin again"
            )
        for name in ("metrics.jsonl", "precision"):
            (folder / name).unlink(missing_ok=True)
    with atomic_write(path) as file:
        file.write(fingerprint)


def decide_precision(stage: StageRecipe, device: torch.device, folder: Path) -> str:
    """What the stage computes in. `auto` is decided once: a stage that goes on computes as it began."""
    if stage.precision != "auto":
        return stage.precision
    path = folder / "precision"
    if not path.is_file():
        with atomic_write(path) as file:
            file.write("bfloat16" if supports_bfloat16(device) else "float32")
    return path.read_text(encoding="utf-8")
