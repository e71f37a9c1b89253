"""The values of a new recipe, and its text with a comment on every key."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from aligngpt.device import supports_bfloat16

Entry = tuple[str, Any, str]
"""A key, its value and the comment on it."""

_COLUMN = 34
"""Column in which comments begin, if the value leaves room."""

LORA_RANK = 16


@dataclass(frozen=True)
class StageSettings:
    """The values of one stage that depend on data and machine; see `aligngpt.training.recipe.StageRecipe`."""

    data: str
    levels: str | None
    image_root: str | None
    epochs: int
    batch_size: int
    micro_batch_size: int
    max_length: int
    gradient_checkpointing: bool
    cache_features: bool
    group_by_length: bool = False
    adapters: bool = False
    bits: int | None = None


@dataclass(frozen=True)
class Settings:
    """The values of a recipe.

    Attributes:
        vision_tower, language_model: folders or hub names.
        num_levels: number of levels N of the captions.
        warm_start: steps of the projector's warm start; None for none.
        warm_start_pairs: maximum number of pairs in the warm start.
        pretrain, instruct: the two stages.
        device: `cuda`, `mps` or `cpu`; precision and learning rates depend on it.
        workers: processes that open images.
        output: folder of the run.
        about: the lines at the beginning of the recipe.
    """

    vision_tower: str
    language_model: str
    num_levels: int
    warm_start: int | None
    warm_start_pairs: int
    pretrain: StageSettings
    instruct: StageSettings
    device: str
    workers: int
    output: str
    about: tuple[str, ...] = ()

    @property
    def precision(self) -> str:
        """Of the computation: bfloat16 on a GPU, unless this machine has one that only emulates it."""
        emulated = torch.cuda.is_available() and not supports_bfloat16(torch.device("cuda"))
        return "bfloat16" if self.device == "cuda" and not emulated else "auto"


def recipe_text(settings: Settings) -> str:
    """The recipe as YAML with a comment on every key; `aligngpt.training.recipe.load_recipe` reads it."""
    lines = [f"# {line}" for line in settings.about]
    for name, comment, entries in (
        ("model", "what the model is made of", _model(settings)),
        ("pretrain", "stage 1: captions", _pretrain(settings)),
        ("instruct", "stage 2: questions with answers", _instruct(settings)),
    ):
        lines += [*([""] if lines else []), _line("", f"{name}:", comment)]
        lines += [_line("  ", f"{key}: {_yaml(value)}", remark) for key, value, remark in entries]
    lines += [
        "",
        _line("", f"output: {_yaml(settings.output)}", "folder of the run; another one for another run"),
        _line("", "seed: 0", "of the fresh parameters and of the order of the data"),
    ]
    return "\n".join(lines) + "\n"


def _model(settings: Settings) -> Iterator[Entry]:
    yield "vision_tower", settings.vision_tower, "folder or hub name"
    yield "language_model", settings.language_model, "folder or hub name"
    yield "vision_feature_layer", -2, "the tower's layer whose features are read, counted from the end"
    yield "alignment", "adaptive", "the gate mixes the levels for each image and question, as in the paper"
    yield "num_levels", settings.num_levels, f"as in `aligngpt levels --levels {settings.num_levels}`"
    yield "chat_template", None, "null: the language model's own conversation format, or Vicuna's if it has none"


def _pretrain(settings: Settings) -> Iterator[Entry]:
    stage = settings.pretrain
    data = stage.data if stage.levels is None else [{"data": stage.data, "levels": stage.levels}]
    yield "data", data, "captions with levels, as written by `aligngpt levels`"
    yield "image_root", stage.image_root, "folder that image paths are relative to; null: the data's own folder"
    yield "train", ["projector", "level_table"], "everything else is frozen"
    if settings.warm_start is not None:
        warm = {"steps": settings.warm_start, "max_pairs": settings.warm_start_pairs}
        yield "warm_start", warm, "of the projector; not in the paper, makes up for little data"
    yield "chat_template", "plain", "image and caption only, without a conversation"
    yield from _common(settings, stage, "caption")
    yield "learning_rate", 2e-3 if settings.device == "cpu" else 1e-3, "peak"
    yield from _schedule(settings)


def _instruct(settings: Settings) -> Iterator[Entry]:
    stage = settings.instruct
    yield "data", stage.data, "questions with answers"
    yield "image_root", stage.image_root, "folder that image paths are relative to; null: the data's own folder"
    yield "train", ["language_model", "projector", "gate"], "everything else is frozen"
    if stage.adapters:
        lora: dict[str, Any] = {"rank": LORA_RANK, "alpha": 2 * LORA_RANK}
        if stage.bits is not None:
            lora["bits"] = stage.bits
        yield (
            "lora",
            lora,
            (
                "adapters train instead of the language model's weights"
                + (f", which are held in {stage.bits} bits" if stage.bits is not None else "")
            ),
        )
    else:
        yield "lora", None, "null: all weights of the language model train; adapters take less memory"
    yield "questions_per_prefix", 1, "8 is faster if there are several questions about each image"
    yield from _common(settings, stage, "conversation")
    if stage.adapters:
        yield "learning_rate", 5e-4 if settings.device == "cpu" else 2e-4, "peak; of the adapters"
        yield "projector_learning_rate", 2e-4 if settings.device == "cpu" else 1e-4, "peak; of projector and gate"
    else:
        yield "learning_rate", 2e-5, "peak"
    yield from _schedule(settings)


def _common(settings: Settings, stage: StageSettings, what: str) -> Iterator[Entry]:
    yield "epochs", stage.epochs, "passes over the data"
    yield "batch_size", stage.batch_size, "samples per step"
    yield "micro_batch_size", stage.micro_batch_size, "samples at a time; less takes less memory, results stay the same"
    yield "max_length", stage.max_length, f"tokens per {what}, image included; more is cut off"
    yield "gradient_checkpointing", stage.gradient_checkpointing, "true: less memory, more time"
    yield "cache_features", stage.cache_features, "true: the vision tower runs once per image, not once per epoch"
    yield (
        "group_by_length",
        stage.group_by_length,
        "steps of samples of similar length; not for images in Parquet files",
    )
    yield "precision", settings.precision, "of the computation; auto: bfloat16 if it is faster on the device"
    yield "workers", settings.workers, "processes that open images; 0: the training process itself"
    yield "checkpoint_minutes", 2.0 if settings.device == "cpu" else 10.0, "an interruption loses no more than this"


def _schedule(settings: Settings) -> Iterator[Entry]:
    yield "schedule", "cosine", "the learning rate falls to zero along a cosine"
    yield "warmup_ratio", 0.05 if settings.device == "cpu" else 0.03, "share of the steps in which it rises first"
    yield "weight_decay", 0.0, "strength of the weight decay"


def _yaml(value: Any) -> str:
    """A value in one line: JSON, which is YAML; plain words without quotation marks."""
    if isinstance(value, str):
        plain = value.replace("-", "").replace("_", "").isalnum() and value[:1].isalpha() and value not in _NOT_TEXT
        return value if plain else json.dumps(value, ensure_ascii=True)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, float):
        # YAML 1.1 reads 2e-05 as text.
        text = f"{value:.1e}" if 0 < value < 1e-2 else str(value)
        return text
    return json.dumps(value)


_NOT_TEXT = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def _line(indent: str, entry: str, comment: str) -> str:
    return f"{indent + entry:<{_COLUMN}}  # {comment}"
