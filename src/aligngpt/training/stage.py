"""Whose run a stage's folder holds: what decides a stage's result, as one number, and what was decided once."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from aligngpt.data.sources.finding import content_of
from aligngpt.data.sources.fingerprints import files_fingerprint
from aligngpt.device import supports_bfloat16
from aligngpt.files import atomic_write
from aligngpt.training.loop.checkpoints import newest_checkpoint
from aligngpt.training.recipe import Recipe, RecipeError, StageName, StageRecipe

WITHOUT_EFFECT = {"checkpoint_minutes", "log_steps", "workers", "max_reject_share", "validation"}
"""Settings of a stage that do not change what it leaves."""

HOW_IT_IS_COMPUTED = {
    "micro_batch_size",
    "gradient_checkpointing",
    "packing",
    "sharding",
    "compile",
    "cache_features",
}
"""Settings of a stage that change how its steps are computed and not, but for rounding, what is learnt."""


BACKBONE_FILES = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".gguf"}
"""Endings of the files of a backbone: weights, configuration, tokenizer."""


def fingerprint_of(recipe: Recipe, name: StageName, stage: StageRecipe) -> str:
    """A hash that changes when what is learnt does: the backbones, a setting with effect, the seed or a file of data.

    A backbone in a local folder counts with the names, the sizes and a part of the content of its files, wherever the
    folder is; one on the hub counts with its name.

    Raises:
        SourceError: a file of data, or of a backbone, cannot be read.
    """
    model = recipe.model.model_dump(mode="json", exclude_defaults=True)
    # How attention is computed changes nothing but rounding.
    model.pop("attention", None)
    for backbone in ("vision_tower", "language_model"):
        model[backbone] = _content_of_backbone(model[backbone])
    contents = [content_of(Path(source.data)) for source in stage.sources]
    settings: dict[str, Any] = {
        # Without defaults, so that a setting which is new to the program leaves old runs what they are.
        "model": model,
        "stage": stage.model_dump(mode="json", exclude=WITHOUT_EFFECT | HOW_IT_IS_COMPUTED, exclude_defaults=True),
        "seed": recipe.seed,
        "data": contents[0] if isinstance(stage.data, str) else contents,
    }
    if stage.validation is not None and stage.validation.share is not None:
        settings["held_out"] = stage.validation.share
    if stage.validation is not None and stage.validation.until_accuracy is not None:
        # The validation then decides how long the stage trains.
        settings["validation"] = stage.validation.model_dump(mode="json", exclude={"minutes"}, exclude_defaults=True)
    if name == "instruct" and recipe.pretrain is not None:
        settings["pretrain"] = fingerprint_of(recipe, "pretrain", recipe.pretrain)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _content_of_backbone(name: str) -> str:
    folder = Path(name)
    if not folder.is_dir():
        return name
    files = sorted(one for one in folder.iterdir() if one.is_file() and one.suffix in BACKBONE_FILES)
    return files_fingerprint(files, folder)


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
