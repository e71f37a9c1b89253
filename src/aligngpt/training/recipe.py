"""Recipes: all settings of a training run, in a YAML file that can be compared with others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from aligngpt.alignment.modes import AlignmentMode
from aligngpt.training.recipe_data import DataRecipe, OutputFolder, RecipeSection, ValidationRecipe, mixed_sources
from aligngpt.training.recipe_data import SourceRecipe as SourceRecipe
from aligngpt.training.recipe_files import RecipeError as RecipeError
from aligngpt.training.recipe_files import recipe_content, set_value
from aligngpt.training.recipe_files import recipe_path as recipe_path
from aligngpt.training.recipe_problems import describe_problems

Part = Literal["vision_tower", "projector", "level_table", "gate", "language_model"]
StageName = Literal["pretrain", "instruct"]
TemplateName = Literal["plain", "vicuna", "llava_v1", "llava_v0", "llava_llama_2", "chatml", "bare"]
Decay = Annotated[float, Field(ge=0, lt=1)]
STAGES: tuple[StageName, ...] = ("pretrain", "instruct")


class ModelRecipe(RecipeSection):
    """What the model is assembled from; see `aligngpt.model.assembling.assemble`.

    Attributes:
        vision_tower: folder or hub name of CLIP, SigLIP, DINOv2 (with or without registers) or another patch
            transformer.
        language_model: folder or hub name of a causal language model with its tokenizer.
        alignment: how the embedding of `<align>` is formed: `adaptive`, the top level plus the gate's mix of the
            others, as in the paper; `global`, the top level alone; `local`, the mix alone; `average`, the top level
            plus the mean of the others; `mean`, the mean of all levels, which is not in the paper; `none`, no alignment
            module.
        num_levels: number of alignment levels N. The captions have levels 1…N, as `similarity` 0…N−1 in the data.
        vision_feature_layer: the tower's layer whose patch features represent the image, counted from the end if
            negative; a list concatenates the features of several layers.
        gate_grid: side of the square grid that the gate reads; the tower's own when None, at most 24.
        text_pooling: the text that the gate reads: `instruction`, the text before the first answer; `all`, as in the
            original code.
        chat_template: `plain`, `vicuna`, `llava_v1`, `llava_v0`, `llava_llama_2`, `chatml`, `bare` or a Jinja file;
            the tokenizer's own when None, or ChatML's or Vicuna's if it has none that suits training.
        pad_images: pad images to a square with the mean colour; False takes a centre crop, `stretch` resizes images to
            the square without keeping their proportions, as SigLIP's own preprocessing does.
        image_size: side in pixels that images are resized to; the tower's own when None.
        image_scales: several sides at which each image is read, such as `[336, 672]`.
        merge_image_tokens: side of the square of neighbouring patches that become one image token; 1 keeps every patch.
        attention: the attention implementation used in training, by its transformers name (`sdpa`, `eager`,
            `flash_attention_2`); None leaves the choice to transformers. On a CPU, `eager` is faster for short
            sequences.
    """

    vision_tower: str
    language_model: str
    alignment: AlignmentMode = "adaptive"
    num_levels: int = Field(8, ge=2)
    vision_feature_layer: int | list[int] = -2
    gate_grid: int | None = Field(None, ge=1)
    text_pooling: Literal["instruction", "all"] = "instruction"
    chat_template: str | None = None
    pad_images: bool | Literal["stretch"] = True
    image_size: int | None = Field(None, ge=1)
    image_scales: list[int] | None = None
    merge_image_tokens: int = Field(1, ge=1)
    attention: str | None = None


class WarmStartRecipe(RecipeSection):
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


class LoraRecipe(RecipeSection):
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


class StageRecipe(RecipeSection):
    """One stage of training.

    Attributes:
        data: LLaVA-format JSON or JSON lines, or Parquet or tar files (see `SourceRecipe`); or a list of such sources
            to be mixed, each with a weight.
        image_root: folder that image paths are relative to; the file's own folder when None.
        min_ratings: the lowest ratings of answers that are learned from, for the sources of `data` without ones of
            their own: `{relevance: 3}` reads `relevance_ratings`. Records without these ratings are kept as they are.
        train: the parts that train; everything else is frozen.
        vision_blocks: if the vision tower trains, train only this many of its blocks, the last of those in use; None
            trains the whole tower.
        lora: train low-rank adapters instead of the language model's weights; None trains the weights.
        epochs: passes over the data.
        max_steps: number of optimiser steps, instead of `epochs`.
        minutes: end after this much training time: the learning rate schedule then follows the time used, or the
            steps done if they are further along.
        min_steps: minimum number of steps, however long they take; makes `minutes` work on machines of any speed.
        pretrained: projector and level table to start from: the folder `pretrain` of another run, its file
            `aligned.safetensors`, or a model folder, of which nothing else is taken; a warning says if it was trained
            with other backbones or image settings. When None, fresh ones, or in instruction tuning those of this
            recipe's pre-training.
        fresh_level_table: draw a new level table at random, instead of starting with the pre-trained one: the
            control of the paper for what the pre-trained table contributes. Only in `instruct`.
        warm_start: projector warm start before pre-training, not in the paper; None skips it.
        cache_features: cache the frozen vision tower's features of each image on disk, so that later epochs and runs
            do not compute them again. See `aligngpt.training.feed.feature_cache`.
        questions_per_prefix: maximum number of samples with the same images that share one row of a batch. The image
            is then encoded once for all of them, and they share one alignment embedding.
        batch_size: rows per optimiser step, over all devices; a row is a sample, or several that share their images.
        micro_batch_size: rows per forward pass and device; `batch_size` when None.
        micro_batch_tokens: tokens per forward pass and device at most, padding included, in place of
            `micro_batch_size`: each step is divided into as many passes as its samples need. A longer row gets a pass
            of its own.
        learning_rate: peak learning rate.
        projector_learning_rate: peak learning rate of projector, level table and gate; `learning_rate` when None.
        learning_rates: peak learning rates of single parts, which override both.
        optimizer: `adamw`; `adamw_8bit`, with its moments in 8 bits (bitsandbytes); `adamw_torch_8bit`, the same by
            torchao; `muon` for the matrices of language model and projector, AdamW for the rest; `adafactor`; or `sgd`,
            whose momentum is the first of `adam_betas`.
        schedule: how the learning rate falls after the warm-up: to zero along a cosine or a line, or not at all.
        warmup_ratio: fraction of the run in which the learning rate rises.
        weight_decay: strength of the weight decay; biases and norms have none.
        adam_betas: decay rates of Adam's two moments.
        max_grad_norm: gradients with a larger norm are scaled down to it; None leaves all as they are.
        precision: of the computation: `bfloat16` (trained weights stay in float32), `float32`, or `auto` for bfloat16
            if it is faster on this device.
        weight_precision: what the large trained tensors of language model and vision tower are held in: `float32`, or
            `bfloat16` with half the memory for them and their gradients, whose updates `adamw_torch_8bit` then rounds
            stochastically (rounded to nearest, most of them would be lost).
        save_dtype: of the finished model's weights, in `instruct`: `float32`, `bfloat16`, or `trained` for the
            precision in which each is trained, or if frozen was read.
        chat_template: the name of one in `aligngpt.model.templates`; the model's own when None. In `instruct` it can
            only be the model's.
        pad_images: how images become squares, as for `model.pad_images`, which holds when None, and in `instruct`
            always.
        max_length: maximum tokens per sample.
        packing: `packed` concatenates the rows of a forward pass without padding, `padded` pads them to the longest;
            `auto` packs if the language model supports it, the attention over packed rows proves exact on this
            device, and `model.attention` is not set. The losses are equal.
        group_by_length: build optimiser steps from rows of similar length; not for images in Parquet files.
        group_by_modality: build each optimiser step from rows that all have images or all have none, drawn at random,
            as in the original code; not for images in Parquet files. The rows left over come last, together.
        shuffle: read the rows in random order, another one in each epoch; False reads them in the order of the data.
        gradient_checkpointing: recompute the language model's activations in the backward pass: less memory, more time.
            A number n recomputes every n-th layer only, which takes less time and more memory than True.
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
    min_ratings: dict[str, float] | None = None
    train: tuple[Part, ...]
    vision_blocks: int | None = Field(None, ge=1)
    lora: LoraRecipe | None = None
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    min_steps: int | None = Field(None, ge=1)
    pretrained: str | None = None
    fresh_level_table: bool = False
    warm_start: WarmStartRecipe | None = None
    cache_features: bool = False
    questions_per_prefix: int = Field(1, ge=1)
    batch_size: int = Field(ge=1)
    micro_batch_size: int | None = Field(None, ge=1)
    micro_batch_tokens: int | None = Field(None, ge=256)
    learning_rate: float = Field(gt=0)
    projector_learning_rate: float | None = Field(None, gt=0)
    learning_rates: dict[Part, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    optimizer: Literal["adamw", "adamw_8bit", "adamw_torch_8bit", "muon", "adafactor", "sgd"] = "adamw"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    adam_betas: tuple[Decay, Decay] = (0.9, 0.999)
    max_grad_norm: float | None = Field(1.0, gt=0)
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    weight_precision: Literal["float32", "bfloat16"] = "float32"
    save_dtype: Literal["trained", "float32", "bfloat16"] = "trained"
    chat_template: TemplateName | None = None
    pad_images: bool | Literal["stretch"] | None = None
    max_length: int = Field(2048, ge=8)
    packing: Literal["auto", "packed", "padded"] = "auto"
    group_by_length: bool = False
    group_by_modality: bool = False
    shuffle: bool = True
    gradient_checkpointing: bool | Annotated[int, Field(ge=1)] = False
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
    def _weights_in_bfloat16(self) -> "StageRecipe":
        if self.weight_precision == "float32":
            return self
        if self.optimizer != "adamw_torch_8bit":
            raise ValueError(
                f"weight_precision is bfloat16, in which {self.optimizer} would lose most of its updates; set "
                "optimizer to adamw_torch_8bit, which rounds them stochastically, or weight_precision to float32"
            )
        if self.precision != "bfloat16":
            raise ValueError("weight_precision bfloat16 needs a computation in bfloat16; set precision to bfloat16")
        if self.lora is not None or not {"language_model", "vision_tower"} & set(self.train):
            raise ValueError(
                "weight_precision is about the weights of a language model or vision tower that trains; without one, "
                "or with lora, set it to float32"
            )
        return self

    @model_validator(mode="after")
    def _save_dtype_of_a_whole_model(self) -> "StageRecipe":
        if self.save_dtype != "trained" and self.lora is not None and not self.lora.merge:
            raise ValueError("save_dtype is about a whole model, but lora.merge is false; set it to trained")
        return self

    @model_validator(mode="after")
    def _one_order(self) -> "StageRecipe":
        if self.group_by_length and self.group_by_modality:
            raise ValueError(
                "group_by_length and group_by_modality both decide which rows form a step; set one of them"
            )
        if self.grouping is not None and not self.shuffle:
            raise ValueError(f"{self.grouping} changes the order of the data; set it to false, or shuffle to true")
        return self

    @model_validator(mode="after")
    def _one_start(self) -> "StageRecipe":
        if self.pretrained is not None and self.warm_start is not None:
            raise ValueError("warm_start would change the projector that pretrained names; set one of the two")
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
    def grouping(self) -> Literal["group_by_length", "group_by_modality"] | None:
        """The setting that decides which rows form an optimiser step; None if chance does."""
        if self.group_by_length:
            return "group_by_length"
        return "group_by_modality" if self.group_by_modality else None

    @property
    def sources(self) -> list[SourceRecipe]:
        """The sources in `data`, with their image roots."""
        return mixed_sources(self.data, self.image_root)

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> "StageRecipe":
        if self.micro_batch_size and self.micro_batch_tokens:
            raise ValueError("micro_batch_size and micro_batch_tokens both limit a forward pass; set one of them")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size must be a multiple of micro_batch_size, found {self.batch_size} and "
                f"{self.micro_batch_size}"
            )
        return self


class Recipe(RecipeSection):
    """A training run: the model, its two stages and the output folder.

    Relative paths of data, image roots and the output are relative to the working directory.

    Attributes:
        model: what the model is assembled from.
        pretrain: stage 1; None for none. Stage 2 then starts from `instruct.pretrained`, or from a projector and levels
            drawn at random.
        instruct: stage 2; None for none.
        output: folder of the run.
        seed: random seed of the fresh parameters and of the order of the samples.
        report_to: trackers that receive the metrics in addition to `metrics.jsonl`, by their transformers names
            (`tensorboard`, `wandb`, `trackio`, …).
    """

    model: ModelRecipe
    pretrain: StageRecipe | None = None
    instruct: StageRecipe | None = None
    output: OutputFolder
    seed: int = Field(0, ge=0, lt=2**32)
    report_to: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_conversation_format(self) -> "Recipe":
        if self.instruct is None:
            return self
        for name in ("chat_template", "pad_images"):
            own, of_model = getattr(self.instruct, name), getattr(self.model, name)
            if own is not None and own != of_model:
                raise ValueError(
                    f"instruct.{name} is {own} and model.{name} {of_model}: the finished model would be used otherwise "
                    f"than it was trained; set model.{name} instead"
                )
        return self

    @model_validator(mode="after")
    def _pretraining_trains_what_it_leaves(self) -> "Recipe":
        if self.pretrain is not None and (lost := set(self.pretrain.train) - {"projector", "level_table"}):
            raise ValueError(
                f"pretrain.train: only projector and level_table are passed to instruction tuning; name "
                f"{', '.join(lost)} in instruct.train"
            )
        return self

    @model_validator(mode="after")
    def _pretraining_leaves_no_model(self) -> "Recipe":
        if self.pretrain is not None and self.pretrain.save_dtype != "trained":
            raise ValueError("pretrain.save_dtype: only instruction tuning writes a model; set instruct.save_dtype")
        return self

    @model_validator(mode="after")
    def _one_pretraining(self) -> "Recipe":
        if self.pretrain is not None and self.instruct is not None and self.instruct.pretrained is not None:
            raise ValueError("instruct.pretrained: this recipe has a pre-training of its own; remove one of the two")
        return self

    @model_validator(mode="after")
    def _fresh_table_of_a_model_with_one(self) -> "Recipe":
        if self.pretrain is not None and self.pretrain.fresh_level_table:
            raise ValueError("pretrain.fresh_level_table: only instruct can draw a new level table; move it there")
        if self.instruct is not None and self.instruct.fresh_level_table and self.model.alignment == "none":
            raise ValueError(
                "instruct.fresh_level_table: with model.alignment none there is no level table; set it to false"
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
    content = recipe_content(Path(path))
    for override in overrides:
        set_value(content, override)
    return make_recipe(content, str(path))


def make_recipe(content: dict[str, Any], name: str = "recipe") -> Recipe:
    """Validate plain data as a recipe; error messages call it `name`.

    Raises:
        RecipeError: a field is unknown or missing, or a value is invalid.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{name}: {describe_problems(error, Recipe)}") from error
