"""A recipe: everything that decides a training run, as a YAML file that anyone can compare with another."""

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
    """A recipe cannot be read or says something impossible; the message names the file and the field."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelRecipe(_Section):
    """What the model is assembled from; see `aligngpt.model.assembling.assemble`.

    `attention` is how attention is computed in training, as transformers calls it (`sdpa`, `eager`,
    `flash_attention_2`); its own choice when None. On a CPU, `eager` is the faster one for short sequences.
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
    attention: str | None = None


class WarmStartRecipe(_Section):
    """A start for the projector before pre-training; not part of the paper. See `aligngpt.training.setup.warm_start`.

    Attributes:
        steps: optimiser steps.
        batch_size: pairs per step.
        learning_rate: of Adam.
        from_level: pairs of this level and above, 1 for all.
        max_pairs: at most this many pairs, drawn at random; their image features are held in memory.
    """

    steps: int = Field(300, ge=1)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    from_level: int = Field(1, ge=1)
    max_pairs: int = Field(4096, ge=2)


class LoraRecipe(_Section):
    """Low-rank adapters that train in place of the language model's weights; see `aligngpt.training.setup.lora`.

    Attributes:
        rank: of the two matrices that are added to each weight.
        alpha: the product counts `alpha / rank`.
        dropout: of the adapters' input.
        bits: hold the weights that the adapters stand beside in so many bits while they train (bitsandbytes' NF4;
            QLoRA, arXiv 2305.14314); as they are when None. What the stage leaves is in full precision either way.
        merge: add the adapters to the weights when the stage ends, so that it leaves an ordinary model; or leave them
            in a folder of their own, beside the model they belong to.
    """

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    bits: Literal[4] | None = None
    merge: bool = True


class SourceRecipe(_Section):
    """One of several sources of samples.

    Attributes:
        data: LLaVA-format JSON or JSON lines; or Parquet or tar files that hold the pictures too: a file, a folder or a
            pattern, such as `shards/{00000..00099}.tar` or `pairs/*.parquet`.
        image_root: folder its image paths start from; that of the stage, or the file's own folder, when None.
        weight: how often an epoch has its samples: 0.5 is a half of them, another one in the next epoch, and 2 is all
            of them twice.
    """

    data: str
    image_root: str | None = None
    weight: float = Field(1.0, gt=0)


def _kind_of_data(value: object) -> str:
    return "sources" if isinstance(value, list) else "file"


# Told apart beforehand, so that an error is about the one that was meant.
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
    """Samples that do not train, and how often to look at them. Name `data`, or a `share` of the training data.

    Attributes:
        data: as that of a stage, or a list of sources (whose weights do not count here). Image paths start from the
            stage's image root where a source has none of its own.
        share: of the training samples, which then do not train; no image is on both sides.
        samples: at most this many of them: the first ones of a file, evenly spaced ones of several files or a share.
        minutes: training time between two looks.
        until_accuracy: share of answers that must be right when the stage ends. Below it, the schedule starts another
            round, of the same minutes and steps, warm-up included; none when None.
        rounds: of the schedule, at most.
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
        """The files of `data`, none without; `image_root` is for those that have none."""
        return [] if self.data is None else _sources(self.data, image_root)


class StageRecipe(_Section):
    """One stage of training.

    Attributes:
        data: LLaVA-format JSON or JSON lines, or Parquet or tar files (see `SourceRecipe`); or a list of such sources
            that are mixed, each with a weight.
        image_root: folder its image paths start from; the file's own folder when None.
        train: the parts that train; everything else is frozen.
        vision_blocks: of a vision tower that trains, only so many of its blocks do, the last ones that are used; all of
            it when None.
        lora: train low-rank adapters in place of the language model's weights; the weights themselves when None.
        epochs: passes over the data; `max_steps` takes its place where given.
        minutes: end after this much training time: the learning rate then falls with the time used, or with the
            steps done where they are further on.
        min_steps: take at least so many steps, however long they last; for `minutes` on machines of any speed.
        warm_start: a start for the projector that is not in the paper, before pre-training; none when None.
        cache_features: keep what the frozen vision tower makes of each picture on disk, so that later epochs and runs
            do not compute it again. See `aligngpt.training.feed.feature_cache`.
        questions_per_prefix: samples with the same images that share one row of a batch, at most. The image is then
            read once for all of them, and one alignment embedding serves them all.
        batch_size: rows per optimiser step, over all devices; a row is a sample, or several that share their images.
        micro_batch_size: rows per forward pass and device; `batch_size` when None.
        learning_rate: peak; `projector_learning_rate` takes its place for projector, level table and gate.
        learning_rates: peaks of single parts, which take the place of both.
        optimizer: `adamw`; `adamw_8bit`, its moments in 8 bits (bitsandbytes); `muon` for the matrices of
            language model and projector, AdamW for all else; `adafactor`; or `sgd`, whose momentum is the first of
            `adam_betas`.
        warmup_ratio: share of the run in which the learning rate rises.
        precision: of the computation: `bfloat16` (weights that train stay in float32), `float32`, or `auto` for
            bfloat16 where the device computes it natively.
        chat_template: the name of one in `aligngpt.model.templates`; the model's own when None.
        pad_images: pad pictures to a square with the mean colour, or cut out the middle; `model.pad_images` when None.
        max_length: tokens per sample.
        packing: `packed` puts the rows of a pass behind each other without padding, `padded` pads them to the longest;
            `auto` packs on a CPU, where the language model allows it. The losses are equal.
        group_by_length: optimiser steps of rows of about equal length; not for pictures in Parquet files.
        compile: let torch compile the layers of the language model (the first steps then take minutes).
        sharding: with several processes, what each holds of the model: `none`, all of it; `full`, a part of parameters,
            gradients and optimiser state (FSDP2, as ZeRO-3); `gradients`, as `full`, but the parameters stay gathered
            between forward and backward pass (as ZeRO-2: faster, more memory); `hybrid`, parts within each machine, and
            every machine holds the same.
        checkpoint_minutes: time between checkpoints, which is what a kill can lose.
        log_steps: optimiser steps between lines of metrics.jsonl.
        workers: processes that read and resize images ahead of the model.
        max_reject_share: of samples that cannot be used, before training stops.
        validation: questions that do not train, answered now and then; none when None.
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
            raise ValueError("name at least one part that trains")
        return parts

    @model_validator(mode="after")
    def _lora_where_it_trains(self) -> "StageRecipe":
        if self.lora is not None and "language_model" not in self.train:
            raise ValueError("lora is for a language model that trains; name language_model in train")
        return self

    @model_validator(mode="after")
    def _cached_features_of_a_frozen_tower(self) -> "StageRecipe":
        if self.cache_features and "vision_tower" in self.train:
            raise ValueError(
                "cache_features is for a vision tower that stays as it is; take vision_tower out of train, or leave "
                "cache_features out"
            )
        return self

    @model_validator(mode="after")
    def _vision_blocks_where_they_train(self) -> "StageRecipe":
        if self.vision_blocks is not None and "vision_tower" not in self.train:
            raise ValueError("vision_blocks is for a vision tower that trains; name vision_tower in train")
        return self

    @model_validator(mode="after")
    def _rounds_of_minutes(self) -> "StageRecipe":
        if self.minutes is None and self.min_steps is not None:
            raise ValueError("min_steps is for a stage that minutes end; give minutes too, or max_steps in its place")
        wants_more = self.validation is not None and self.validation.until_accuracy is not None
        if self.minutes is None and wants_more:
            raise ValueError("validation.until_accuracy is for a stage that minutes end; give minutes too")
        return self

    @model_validator(mode="after")
    def _learning_rates_of_what_trains(self) -> "StageRecipe":
        if frozen := [part for part in self.learning_rates if part not in self.train]:
            raise ValueError(f"learning_rates: {', '.join(frozen)} does not train; name it in train, or leave it out")
        return self

    @property
    def sources(self) -> list[SourceRecipe]:
        """The files of `data`, with their image roots."""
        return _sources(self.data, self.image_root)

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> "StageRecipe":
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size must be a multiple of micro_batch_size")
        return self


class Recipe(_Section):
    """A training run: the model, its two stages and where the results go.

    Relative paths of data, image roots and the output start from the folder the command runs in. `report_to` names
    trackers that get the metrics besides the file `metrics.jsonl`, as transformers calls them (`tensorboard`, `wandb`,
    `trackio`, …).
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
                f"pretrain.train: only projector and level_table go on to instruction tuning; name {', '.join(lost)} "
                "in instruct.train"
            )
        return self

    @model_validator(mode="after")
    def _warm_start_comes_first(self) -> "Recipe":
        if self.instruct is not None and self.instruct.warm_start is not None:
            raise ValueError("instruct.warm_start: only pretrain can have a warm start")
        return self

    def stage(self, name: StageName) -> StageRecipe | None:
        """The settings of one stage, None where the recipe leaves it out."""
        return self.pretrain if name == "pretrain" else self.instruct


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with single values replaced.

    A recipe may begin with `base: other.yaml`, in the same folder: it is that one but for what it says itself.

    Args:
        path: the YAML file.
        overrides: `section.field=value`, such as `instruct.learning_rate=1e-5`; the value is read as YAML.

    Raises:
        RecipeError: the file cannot be read, a field is unknown or missing, or a value is impossible.
    """
    content = _content(Path(path), ())
    for override in overrides:
        _override(content, override)
    return make_recipe(content, str(path))


def _content(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """What a recipe says, with what its bases say where it is silent; `above` are those it is the base of."""
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
        raise RecipeError(f"the recipe {path}: base must be the name of another recipe beside it, found {base!r}")
    return _merged(_content(path.parent / base, (*above, path)), content)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict)
        merged[name] = _merged(base[name], value) if both else value
    return merged


def recipe_path(name: str) -> Path:
    """Where a recipe that comes with the package is, such as `quickstart`."""
    package = Path(aligngpt.__file__).parent
    # A checkout has the recipes beside `src`, an installed wheel inside the package.
    checkout = package.parents[1] / "recipes"
    folder = checkout if checkout.is_dir() else package / "recipes"
    return folder / f"{name}.yaml"


def make_recipe(content: dict[str, Any], name: str = "recipe") -> Recipe:
    """A recipe out of plain data; `name` is what errors call it.

    Raises:
        RecipeError: a field is unknown or missing, or a value is impossible.
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
    return f"unknown; did you mean {meant}?" if meant else f"unknown; there are {', '.join(known)}"


def _fields(section: type[BaseModel], below: Sequence[str]) -> list[str]:
    """The names of what the section at the end of this path may hold."""
    for name in below:
        # Below a list of sections are numbers and the kind of data.
        if name in section.model_fields:
            section = next(_sections(section.model_fields[name].annotation))
    return list(section.model_fields)


def _sections(kind: Any) -> Iterator[type[BaseModel]]:
    """The sections in a type: one that may be left out is a union with None, and there are lists of them."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _sections(part)


def _override(content: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    *sections, field = key.strip().split(".")
    if not separator or not field:
        raise RecipeError(f"{override!r} is no setting; write section.field=value, such as instruct.epochs=2")
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
    """The known name that is spelt most like `name`, ignoring case; None where none is much like it."""
    spelt = {other.lower(): other for other in known}
    return next((spelt[match] for match in get_close_matches(name.lower(), spelt, n=1)), None)
