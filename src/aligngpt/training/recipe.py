"""Recipes: all settings of a training run, in a YAML file that can be compared with others."""

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

import aligngpt
from aligngpt.alignment.module import AlignmentMode
from aligngpt.errors import AlignGPTError

Part = Literal["vision_tower", "projector", "level_table", "gate", "language_model"]
StageName = Literal["pretrain", "instruct"]
TemplateName = Literal["plain", "vicuna", "llava_v1", "llava_v0", "llava_llama_2", "chatml", "bare"]
STAGES: tuple[StageName, ...] = ("pretrain", "instruct")


class RecipeError(AlignGPTError):
    """A recipe cannot be read or has an invalid value; the message names the file and the field."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelRecipe(_Section):
    """What the model is assembled from; see `aligngpt.model.assembling.assemble`.

    `attention` is the attention implementation used in training, by its transformers name (`sdpa`, `eager`,
    `flash_attention_2`); None leaves the choice to transformers. On a CPU, `eager` is faster for short sequences.
    """

    vision_tower: str
    language_model: str
    alignment: AlignmentMode = "adaptive"
    num_levels: int = Field(8, ge=2)
    vision_feature_layer: int | list[int] = -2
    gate_grid: int | None = Field(None, ge=1)
    text_pooling: Literal["instruction", "all"] = "instruction"
    chat_template: str | None = None
    pad_images: bool = True
    image_size: int | None = Field(None, ge=1)
    image_scales: list[int] | None = None
    merge_image_tokens: int = Field(1, ge=1)
    attention: str | None = None


class WarmStartRecipe(_Section):
    """A projector warm start before pre-training; not part of the paper. See `aligngpt.training.setup.warm_start`.

    Attributes:
        steps: optimiser steps.
        batch_size: pairs per step.
        learning_rate: Adam's learning rate.
        from_level: use pairs of this level and above; 1 for all pairs.
        max_pairs: maximum number of pairs, drawn at random; their image features are held in memory.
    """

    steps: int = Field(300, ge=1)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    from_level: int = Field(1, ge=1)
    max_pairs: int = Field(4096, ge=2)


class LoraRecipe(_Section):
    """Low-rank adapters that train instead of the language model's weights; see `aligngpt.training.setup.lora`.

    Attributes:
        rank: of the two adapter matrices of each weight.
        alpha: the adapters' product is scaled by `alpha / rank`.
        dropout: on the adapters' input.
        bits: number of bits for the adapted weights while the adapters train (bitsandbytes' NF4; QLoRA,
            arXiv 2305.14314); None keeps their precision. The stage's output is in full precision either way.
        merge: merge the adapters into the weights when the stage ends, which gives an ordinary model; if False, they
            are written to a folder of their own, with the base model in another.
    """

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    bits: Literal[4] | None = None
    merge: bool = True


class SourceRecipe(_Section):
    """One of several sources of samples.

    Attributes:
        data: LLaVA-format JSON or JSON lines; or Parquet or tar files that also hold the images: a file, a folder or a
            pattern, such as `shards/{00000..00099}.tar` or `pairs/*.parquet`.
        image_root: folder that image paths are relative to; when None, the stage's, or else the file's own folder.
        weight: how often each sample occurs per epoch: 0.5 uses half of them, a different half in the next epoch; 2
            uses each of them twice.
    """

    data: str
    image_root: str | None = None
    weight: float = Field(1.0, gt=0)


def _kind_of_data(value: object) -> str:
    return "sources" if isinstance(value, list) else "file"


# A discriminated union, so that an error is about the kind of data that was meant.
DataRecipe = Annotated[
    Annotated[str, Tag("file")] | Annotated[list[SourceRecipe], Field(min_length=1), Tag("sources")],
    Discriminator(_kind_of_data),
]
"""A file of samples, or a list of sources that are mixed."""


def _sources(data: str | list[SourceRecipe], image_root: str | None) -> list[SourceRecipe]:
    if isinstance(data, str):
        return [SourceRecipe(data=data, image_root=image_root, weight=1.0)]
    return [one if one.image_root is not None else one.model_copy(update={"image_root": image_root}) for one in data]


class ValidationRecipe(_Section):
    """Validation data, and how often to validate. Set either `data`, or a `share` of the training data.

    Attributes:
        data: as for a stage, or a list of sources (whose weights are ignored here). Image paths are relative to the
            stage's image root if a source has none of its own.
        share: fraction of the training samples that is held out; no image is on both sides.
        samples: maximum number of samples: the first of a single file, evenly spaced ones of several files or a share.
        minutes: training time between validations.
        until_accuracy: fraction of answers that must be right when the stage ends. Below it, the schedule starts
            another round of the same minutes and steps, including warm-up; None never does.
        rounds: maximum number of rounds of the schedule.
    """

    data: DataRecipe | None = None
    share: float | None = Field(None, gt=0, lt=1)
    samples: int = Field(256, ge=1)
    minutes: float = Field(10.0, gt=0)
    until_accuracy: float | None = Field(None, gt=0, le=1)
    rounds: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> "ValidationRecipe":
        if (self.data is None) == (self.share is None):
            raise ValueError("name data or share, one of the two")
        return self

    def sources(self, image_root: str | None) -> list[SourceRecipe]:
        """The sources in `data`, none if it is not set; `image_root` is for sources without one of their own."""
        return [] if self.data is None else _sources(self.data, image_root)


class StageRecipe(_Section):
    """One stage of training.

    Attributes:
        data: LLaVA-format JSON or JSON lines, or Parquet or tar files (see `SourceRecipe`); or a list of such sources
            to be mixed, each with a weight.
        image_root: folder that image paths are relative to; the file's own folder when None.
        train: the parts that train; everything else is frozen.
        vision_blocks: if the vision tower trains, train only this many of its blocks, the last of those in use; None
            trains the whole tower.
        lora: train low-rank adapters instead of the language model's weights; None trains the weights.
        epochs: passes over the data; overridden by `max_steps`.
        minutes: end after this much training time: the learning rate schedule then follows the time used, or the
            steps done if they are further along.
        min_steps: minimum number of steps, however long they take; makes `minutes` work on machines of any speed.
        warm_start: projector warm start before pre-training, not in the paper; None skips it.
        cache_features: cache the frozen vision tower's features of each image on disk, so that later epochs and runs
            do not compute them again. See `aligngpt.training.feed.feature_cache`.
        questions_per_prefix: maximum number of samples with the same images that share one row of a batch. The image
            is then encoded once for all of them, and they share one alignment embedding.
        batch_size: rows per optimiser step, over all devices; a row is a sample, or several that share their images.
        micro_batch_size: rows per forward pass and device; `batch_size` when None.
        learning_rate: peak learning rate; `projector_learning_rate` overrides it for projector, level table and gate.
        learning_rates: peak learning rates of single parts, which override both.
        optimizer: `adamw`; `adamw_8bit`, with its moments in 8 bits (bitsandbytes); `muon` for the matrices of
            language model and projector, AdamW for the rest; `adafactor`; or `sgd`, whose momentum is the first of
            `adam_betas`.
        warmup_ratio: fraction of the run in which the learning rate rises.
        precision: of the computation: `bfloat16` (trained weights stay in float32), `float32`, or `auto` for bfloat16
            if the device supports it natively.
        chat_template: the name of one in `aligngpt.model.templates`; the model's own when None.
        pad_images: pad images to a square with the mean colour, or crop the centre; `model.pad_images` when None.
        max_length: maximum tokens per sample.
        packing: `packed` concatenates the rows of a forward pass without padding, `padded` pads them to the longest;
            `auto` packs on a CPU if the language model supports it. The losses are equal.
        group_by_length: build optimiser steps from rows of similar length; not for images in Parquet files.
        compile: compile the layers of the language model with torch (the first steps then take minutes).
        sharding: with several processes, how the model is distributed: `none`, each holds all of it; `full`, each holds
            a part of parameters, gradients and optimiser state (FSDP2, like ZeRO-3); `gradients`, as `full`, but the
            parameters stay gathered between forward and backward pass (like ZeRO-2: faster, more memory); `hybrid`,
            sharded within each machine and replicated across machines.
        checkpoint_minutes: time between checkpoints, the most that an interruption can lose.
        log_steps: optimiser steps between lines of metrics.jsonl.
        workers: processes that read and resize images ahead of the model.
        max_reject_share: fraction of unusable samples above which training stops.
        validation: questions excluded from training, answered at intervals; None for no validation.
    """

    data: DataRecipe
    image_root: str | None = None
    train: tuple[Part, ...]
    vision_blocks: int | None = Field(None, ge=1)
    lora: LoraRecipe | None = None
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    min_steps: int | None = Field(None, ge=1)
    warm_start: WarmStartRecipe | None = None
    cache_features: bool = False
    questions_per_prefix: int = Field(1, ge=1)
    batch_size: int = Field(ge=1)
    micro_batch_size: int | None = Field(None, ge=1)
    learning_rate: float = Field(gt=0)
    projector_learning_rate: float | None = Field(None, gt=0)
    learning_rates: dict[Part, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    optimizer: Literal["adamw", "adamw_8bit", "muon", "adafactor", "sgd"] = "adamw"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    adam_betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    chat_template: TemplateName | None = None
    pad_images: bool | None = None
    max_length: int = Field(2048, ge=8)
    packing: Literal["auto", "packed", "padded"] = "auto"
    group_by_length: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    sharding: Literal["none", "full", "gradients", "hybrid"] = "none"
    checkpoint_minutes: float = Field(10.0, gt=0)
    log_steps: int = Field(10, ge=1)
    workers: int = Field(0, ge=0)
    max_reject_share: float = Field(0.05, ge=0, le=1)
    validation: ValidationRecipe | None = None

    @field_validator("train")
    @classmethod
    def _train_something(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        if not parts:
            raise ValueError("name at least one part to train")
        return parts

    @model_validator(mode="after")
    def _lora_where_it_trains(self) -> "StageRecipe":
        if self.lora is not None and "language_model" not in self.train:
            raise ValueError("lora needs a language model that trains; name language_model in train")
        return self

    @model_validator(mode="after")
    def _cached_features_of_a_frozen_tower(self) -> "StageRecipe":
        if self.cache_features and "vision_tower" in self.train:
            raise ValueError(
                "cache_features needs a frozen vision tower; take vision_tower out of train, or set cache_features to "
                "false"
            )
        return self

    @model_validator(mode="after")
    def _vision_blocks_where_they_train(self) -> "StageRecipe":
        if self.vision_blocks is not None and "vision_tower" not in self.train:
            raise ValueError("vision_blocks needs a vision tower that trains; name vision_tower in train")
        return self

    @model_validator(mode="after")
    def _rounds_of_minutes(self) -> "StageRecipe":
        if self.minutes is None and self.min_steps is not None:
            raise ValueError("min_steps requires minutes; set minutes too, or use max_steps instead")
        wants_more = self.validation is not None and self.validation.until_accuracy is not None
        if self.minutes is None and wants_more:
            raise ValueError("validation.until_accuracy requires minutes; set minutes too")
        return self

    @model_validator(mode="after")
    def _learning_rates_of_what_trains(self) -> "StageRecipe":
        if frozen := [part for part in self.learning_rates if part not in self.train]:
            raise ValueError(f"learning_rates: {', '.join(frozen)} does not train; name it in train, or leave it out")
        return self

    @property
    def sources(self) -> list[SourceRecipe]:
        """The sources in `data`, with their image roots."""
        return _sources(self.data, self.image_root)

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> "StageRecipe":
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size must be a multiple of micro_batch_size")
        return self


class Recipe(_Section):
    """A training run: the model, its two stages and the output folder.

    Relative paths of data, image roots and the output are relative to the working directory. `report_to` lists
    trackers that receive the metrics in addition to `metrics.jsonl`, by their transformers names (`tensorboard`,
    `wandb`, `trackio`, …).
    """

    model: ModelRecipe
    pretrain: StageRecipe | None = None
    instruct: StageRecipe | None = None
    output: str
    seed: int = 0
    report_to: list[str] = []

    @model_validator(mode="after")
    def _pretraining_trains_what_it_leaves(self) -> "Recipe":
        if self.pretrain is not None and (lost := set(self.pretrain.train) - {"projector", "level_table"}):
            raise ValueError(
                f"pretrain.train: only projector and level_table are passed to instruction tuning; name "
                f"{', '.join(lost)} in instruct.train"
            )
        return self

    @model_validator(mode="after")
    def _warm_start_comes_first(self) -> "Recipe":
        if self.instruct is not None and self.instruct.warm_start is not None:
            raise ValueError("instruct.warm_start: only pretrain can have a warm start")
        return self

    def stage(self, name: StageName) -> StageRecipe | None:
        """The settings of one stage; None if the recipe does not have it."""
        return self.pretrain if name == "pretrain" else self.instruct


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    A recipe may begin with `base: other.yaml`, in the same folder: it inherits all values that it does not set.

    Args:
        path: the YAML file.
        overrides: `section.field=value`, such as `instruct.learning_rate=1e-5`; the value is parsed as YAML.

    Raises:
        RecipeError: the file cannot be read, a field is unknown or missing, or a value is invalid.
    """
    content = _content(Path(path), ())
    for override in overrides:
        _override(content, override)
    return make_recipe(content, str(path))


def _content(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The content of a recipe merged over that of its bases; `above` are the recipes that inherit from it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"the recipe {path} must hold the sections model, pretrain, instruct; found {content!r:.80}")
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str) or path in above:
        raise RecipeError(f"the recipe {path}: base must name another recipe in the same folder, found {base!r}")
    return _merged(_content(path.parent / base, (*above, path)), content)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict)
        merged[name] = _merged(base[name], value) if both else value
    return merged


def recipe_path(name: str) -> Path:
    """The path of a recipe that ships with the package, such as `quickstart`."""
    package = Path(aligngpt.__file__).parent
    # A checkout has the recipes next to `src`, an installed wheel inside the package.
    checkout = package.parents[1] / "recipes"
    folder = checkout if checkout.is_dir() else package / "recipes"
    return folder / f"{name}.yaml"


def make_recipe(content: dict[str, Any], name: str = "recipe") -> Recipe:
    """Validate plain data as a recipe; error messages call it `name`.

    Raises:
        RecipeError: a field is unknown or missing, or a value is invalid.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'recipe'}: {_what_is_wrong(problem)}"
            for problem in error.errors()
        )
        raise RecipeError(f"{name}: {problems}") from error


def _what_is_wrong(problem: ErrorDetails) -> str:
    if problem["type"] != "extra_forbidden":
        return problem["msg"]
    *sections, name = (str(part) for part in problem["loc"])
    known = _fields(Recipe, sections)
    meant = closest(name, known)
    return f"unknown; did you mean {meant}?" if meant else f"unknown; known fields: {', '.join(known)}"


def _fields(section: type[BaseModel], below: Sequence[str]) -> list[str]:
    """The field names of the section at the end of this path."""
    for name in below:
        # Within a list of sections, the path also has indices and the kind of data.
        if name in section.model_fields:
            section = next(_sections(section.model_fields[name].annotation))
    return list(section.model_fields)


def _sections(kind: Any) -> Iterator[type[BaseModel]]:
    """The sections in a type, which may be a union with None (an optional section) or a list of sections."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _sections(part)


def _override(content: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    *sections, field = key.strip().split(".")
    if not separator or not field:
        raise RecipeError(f"{override!r} is not a setting; write section.field=value, such as instruct.epochs=2")
    target = content
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise RecipeError(f"{override!r}: {section} is a value, not a section")
    try:
        target[field] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"{override!r}: the value is not YAML: {error}") from error


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest in spelling to `name`, ignoring case; None if none is close."""
    spelt = {other.lower(): other for other in known}
    return next((spelt[match] for match in get_close_matches(name.lower(), spelt, n=1)), None)
