"""The files of a stage: its folders, the fingerprint of its run, its precision, and the result once it is finished."""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.finding import content_of
from aligngpt.data.sources.fingerprints import files_fingerprint
from aligngpt.data.sources.remote import content_hash
from aligngpt.device import supports_bfloat16
from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.foreign.checks import read_config
from aligngpt.model.foreign.first_stage import first_stage_file
from aligngpt.model.templates import NAMED_TEMPLATES
from aligngpt.training.loop.checkpoints import newest_checkpoint
from aligngpt.training.recipe import Recipe, RecipeError, StageName, StageRecipe
from aligngpt.training.setup.pretrained_parts import PRETRAINED_FILE, pretrained_parts_of

DESCRIPTIONS = {"pretrain": "pre-training", "instruct": "instruction tuning"}

WITHOUT_EFFECT = {"checkpoint_minutes", "log_steps", "workers", "max_reject_share", "validation"}
"""Settings of a stage that do not affect its result."""

HOW_IT_IS_COMPUTED = {
    "micro_batch_size",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "packing",
    "sharding",
    "compile",
    "cache_features",
}
"""Settings of a stage that change how its steps are computed, but not the result, apart from rounding."""

BACKBONE_FILES = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".gguf"}
"""File extensions of a backbone: weights, configuration, tokenizer."""


@dataclass(frozen=True)
class StageResult:
    """The result of one stage.

    Attributes:
        stage: `pretrain` or `instruct`.
        fingerprint: of all settings and data that affect the result, see `fingerprint_of`.
        steps: optimiser steps.
        samples: training samples seen, estimated from the mean number of samples per row.
        seconds: training time over all runs of the stage.
        peak_memory: resident memory of this process while it trained, in bytes; None if the system cannot tell it from
            that of what the process did before.
        loss: mean of the last five logged losses.
        rejects: number of samples that could not be used.
        peak_device_memory: memory of its GPU while it trained, in bytes; None without one.
    """

    stage: StageName
    fingerprint: str
    steps: int
    samples: int
    seconds: float
    peak_memory: int | None
    loss: float
    rejects: int
    peak_device_memory: int | None = None


def stage_folder(recipe: Recipe, name: StageName) -> Path:
    """The folder of a stage's files."""
    return Path(recipe.output) / name


def model_folder(recipe: Recipe) -> Path:
    """The output folder of instruction tuning: the model, or its adapters."""
    return Path(recipe.output) / "model"


def base_folder(recipe: Recipe) -> Path:
    """The folder of the base model, written if instruction tuning writes adapters instead of a merged model."""
    return Path(recipe.output) / "base"


def result_folders(recipe: Recipe) -> list[Path]:
    """The folders that instruction tuning writes: that of the model, and that of the base of separate adapters."""
    lora = None if recipe.instruct is None else recipe.instruct.lora
    return [model_folder(recipe)] if lora is None or lora.merge else [model_folder(recipe), base_folder(recipe)]


def stage_result(recipe: Recipe, name: StageName) -> StageResult | None:
    """The result of a stage; None while it is not finished."""
    path = stage_folder(recipe, name) / "stage.json"
    if not path.is_file():
        return None
    try:
        return StageResult(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise AlignGPTError(f"{path} is damaged ({error}); remove {path.parent} to train again") from error


def pretrained_file(named: str) -> Path:
    """The weights file or model folder that a stage's `pretrained` names.

    Raises:
        RecipeError: there is none, or it has the format of other code.
        AlignGPTError: the folder's `config.json` cannot be read.
    """
    path = Path(named)
    path = path / PRETRAINED_FILE if (path / PRETRAINED_FILE).is_file() else path
    if path.is_dir() and (path / "config.json").is_file():
        config = read_config(path)
        # The original code's models have the same type, and a flat configuration.
        if config.get("model_type") == AlignGPTConfig.model_type and "text_config" in config:
            return path
        is_foreign = True
    else:
        is_foreign = path.exists() and first_stage_file(path) is not None
    if is_foreign:
        raise RecipeError(
            f"pretrained: {path} has the format of other code; convert it with `aligngpt convert`, and name the folder "
            "that this writes"
        )
    path = path / PRETRAINED_FILE if path.is_dir() else path
    if not path.is_file():
        raise RecipeError(
            f"pretrained: there is no file {path}; name the `pretrain` folder of a run whose pre-training is finished, "
            f"its {PRETRAINED_FILE}, or a model folder"
        )
    return path


def _content_of_pretrained(path: Path) -> str:
    """A hash of what a stage takes from what `pretrained_file` returned."""
    if path.is_dir():
        return hashlib.sha256(save(pretrained_parts_of(path))).hexdigest()
    return files_fingerprint([path], path.parent)


def fingerprint_of(recipe: Recipe, name: StageName, stage: StageRecipe) -> str:
    """A hash of everything that affects the result: the backbones, the relevant settings, the seed and the data.

    For a backbone in a local folder it covers the names, the sizes and a part of the content of its files, but not the
    location of the folder; for one on the hub, its name.

    Raises:
        SourceError: a file of the data or of a backbone cannot be read.
    """
    model = recipe.model.model_dump(mode="json", exclude_defaults=True)
    # The attention implementation only changes rounding.
    model.pop("attention", None)
    for backbone in ("vision_tower", "language_model"):
        model[backbone] = content_of_backbone(model[backbone])
    template = model.get("chat_template")
    if template is not None and template not in NAMED_TEMPLATES and Path(template).is_file():
        model["chat_template"] = content_of(Path(template))
    contents = [content_of(Path(source.data)) for source in stage.sources]
    contents += [_content_of_levels(Path(source.levels)) for source in stage.sources if source.levels is not None]
    without = WITHOUT_EFFECT | HOW_IT_IS_COMPUTED | {"pretrained"}
    settings: dict[str, Any] = {
        # Defaults are left out, so that a setting added in a later version does not change the hash of existing runs.
        "model": model,
        "stage": stage.model_dump(mode="json", exclude=without, exclude_defaults=True),
        "seed": recipe.seed,
        "data": contents[0] if isinstance(stage.data, str) else contents,
    }
    if stage.pretrained is not None:
        settings["pretrained"] = _content_of_pretrained(pretrained_file(stage.pretrained))
    if stage.validation is not None and stage.validation.share is not None:
        settings["held_out"] = stage.validation.share
    if stage.validation is not None and stage.validation.until_accuracy is not None:
        # Validation then determines how long the stage trains.
        settings["validation"] = stage.validation.model_dump(mode="json", exclude={"minutes"}, exclude_defaults=True)
    if name == "instruct" and recipe.pretrain is not None:
        settings["pretrain"] = fingerprint_of(recipe, "pretrain", recipe.pretrain)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _content_of_levels(table: Path) -> str:
    try:
        return content_hash(table)
    except OSError as error:
        raise SourceError(f"the levels {table} cannot be read: {error.strerror or error}") from error


def content_of_backbone(name: str) -> str:
    """A hash of the files of a backbone in a local folder, wherever that is; for one on the hub, its name.

    Raises:
        SourceError: a file cannot be read.
    """
    folder = Path(name)
    if not folder.is_dir():
        return name
    files = sorted(one for one in folder.iterdir() if one.is_file() and one.suffix in BACKBONE_FILES)
    return files_fingerprint(files, folder)


def claim(folder: Path, fingerprint: str) -> None:
    """Write the run's fingerprint into the folder, so that it never resumes from checkpoints of other settings.

    Of several processes, the main one calls it.

    Raises:
        RecipeError: the folder has a checkpoint of a run with another fingerprint.
    """
    if newest_checkpoint(folder / "checkpoints") is None:
        # Nothing is resumed: the precision is that of the device which trains now.
        (folder / "precision").unlink(missing_ok=True)
    path = folder / "fingerprint"
    if path.is_file() and path.read_text() != fingerprint:
        if newest_checkpoint(folder / "checkpoints") is not None:
            raise RecipeError(
                f"{folder} holds an unfinished stage with other settings or data; choose another output, or remove "
                "that folder to start over"
            )
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    with atomic_write(path) as file:
        file.write(fingerprint)


def claimed(folder: Path, fingerprint: str, patience: float) -> bool:
    """Whether the main process's `claim` of the folder can be seen here; not so in a folder of the same name elsewhere.

    Args:
        folder, fingerprint: see `claim`.
        patience: seconds to wait for it.
    """
    give_up = time.monotonic() + patience
    while True:
        with suppress(OSError):
            if (folder / "fingerprint").read_text() == fingerprint:
                return True
        if time.monotonic() > give_up:
            return False
        time.sleep(0.5)


def decide_precision(stage: StageRecipe, device: torch.device, folder: Path) -> str:
    """The precision a stage computes in. `auto` is resolved once and stored: a resumed stage keeps its precision."""
    if stage.precision != "auto":
        return stage.precision
    path = folder / "precision"
    if not path.is_file():
        with atomic_write(path) as file:
            file.write("bfloat16" if supports_bfloat16(device) else "float32")
    return path.read_text(encoding="utf-8")
