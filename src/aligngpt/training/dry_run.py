"""Estimates for a recipe before it runs: trained parameters, amount of data, steps, training time and memory."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from aligngpt.data.batches.examples import ExampleError, tokenize
from aligngpt.data.batches.rows import rows_of
from aligngpt.data.records.sample import Sample
from aligngpt.data.rejects import Rejects
from aligngpt.data.sources.remote import located
from aligngpt.device import matrix_product_rate, resolve_device, supports_bfloat16
from aligngpt.model.modeling import IGNORE_INDEX, AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.model.templates import NAMED_TEMPLATES
from aligngpt.training.feed.cut_off import LOOKED_AT, cut_off_warning
from aligngpt.training.feed.datasets import open_sources, training_part, usable_length
from aligngpt.training.feed.level_checks import (
    levels_without_samples,
    untrained_levels_warning,
    untrained_top_level,
)
from aligngpt.training.feed.sampler import shares_of
from aligngpt.training.feed.source_checks import is_there, source_problems, swapped_warning
from aligngpt.training.finished import without_pretraining
from aligngpt.training.flops import Flops, ModelFlops
from aligngpt.training.flops_plan import flops_lines
from aligngpt.training.memory_plan import MemoryEstimate, MemoryPlan, device_memory, sharded_note
from aligngpt.training.origin import other_origin
from aligngpt.training.recipe import STAGES, Recipe, RecipeError, SourceRecipe, StageName, StageRecipe
from aligngpt.training.run_folder import check_run_folder
from aligngpt.training.setup.freezing import freeze_all_but
from aligngpt.training.setup.loading import load_model
from aligngpt.training.setup.parameter_summary import PartRow, parts_of, parts_table

CAPTION_TOKENS = 64
"""Assumed length of a long caption, used if there is no data to sample."""

ATTAINABLE = 0.5
"""Fraction of the matrix-multiplication rate that training may reach; good training code reaches 30 to 50 %."""


class DataPlan(NamedTuple):
    """The data of a stage.

    Attributes:
        samples, rows: number of samples and rows; the images were not checked.
        epoch_rows: rows per epoch; differs from `rows` if sources have weights.
        tokens, counted: mean tokens per sampled row that can be trained on: all of them, and those that contribute to
            the loss.
        longest: tokens in the longest sampled row.
        images: mean number of images per row.
        unusable: why the first sampled row cannot be trained on, if none can; the means are then 0.
        without_samples: see `levels_without_samples`.
        cut_off: see `cut_off_warning`.
    """

    samples: int
    rows: int
    epoch_rows: int
    tokens: float
    counted: float
    longest: int
    images: float
    unusable: str | None = None
    without_samples: Sequence[int] = ()
    cut_off: str | None = None


@dataclass(frozen=True)
class StagePlan:
    """Estimates for one stage.

    Attributes:
        stage: `pretrain` or `instruct`.
        parts: see `parts_of`.
        data: None if the data files do not exist.
        steps: optimiser steps; None if they are unknown because data is missing.
        memory: see `MemoryPlan`.
        work: floating-point operations over all steps; None if the number of steps is unknown.
        seconds: estimated time on this machine's device, at half its measured matrix-multiplication rate; with the warm
            start, and within the recipe's `minutes`.
        warm_start: seconds of it that the warm start takes.
        all_steps: seconds that all steps would take if that is more than the recipe's `minutes` allow, else None.
        precision: of the computation.
        notes: further remarks for the reader.
        problems: why `train` would refuse the data of this stage, see `source_problems`.
        speed: see `flops_lines`; empty without data.
    """

    stage: StageName
    parts: list[PartRow]
    data: DataPlan | None
    steps: int | None
    memory: MemoryPlan
    work: float | None
    seconds: float | None
    warm_start: float
    all_steps: float | None
    precision: str
    notes: tuple[str, ...]
    problems: tuple[str, ...] = ()
    speed: tuple[str, ...] = ()

    def text(self) -> str:
        """The plan as lines of text."""
        lines = [f"[{self.stage}]", parts_table(self.parts)]
        if self.data is not None:
            length = (
                f"a row has {self.data.tokens:.0f} tokens on average ({self.data.counted:.0f} in the loss) and at most "
                f"{self.data.longest:,}"
            )
            if self.data.unusable is not None:
                length = "none of those looked at can be trained on"
            lines.append(f"data: {self.data.samples:,} samples in {self.data.rows:,} rows; {length}")
        if self.steps is not None:
            lines.append(f"steps: {self.steps:,}" + (" at most" if self.all_steps is not None else ""))
        gigabytes = [f"{part / 1e9:.1f} GB {name}" for name, part in self.memory._asdict().items()]
        lines.append(
            f"memory per device: {sum(self.memory) / 1e9:.1f} GB ({', '.join(gigabytes)}), in {self.precision}"
        )
        if self.work is not None and self.seconds is not None:
            lines.append(f"work: {self.work:.1e} floating-point operations for all steps")
            lines.append(f"time: {self._time()}")
        lines += [*self.speed, *(f"note: {note}" for note in self.notes)]
        return "\n".join([*lines, *(f"problem, `aligngpt train` would stop here: {one}" for one in self.problems)])

    def _time(self) -> str:
        assert self.seconds is not None
        parts = [f"about {_duration(self.seconds)} on this machine"]
        if self.warm_start:
            parts.append(f"{_duration(self.warm_start)} of it for the warm start")
        if self.all_steps is not None:
            parts.append(f"limited by the recipe's minutes: all steps would take {_duration(self.all_steps)}")
        return ", ".join(parts)


def plan(recipe: Recipe, stages: Sequence[StageName] = STAGES) -> list[StagePlan]:
    """Estimate the stages of a recipe. Reads configurations, tokenizers and data, but no weights or images.

    Raises:
        BackboneError: a backbone's configuration or tokenizer cannot be loaded.
        AlignGPTError: the data cannot be read.
    """
    return [_stage_plan(recipe, name, stage) for name in STAGES if name in stages and (stage := recipe.stage(name))]


def _stage_plan(recipe: Recipe, name: StageName, stage: StageRecipe) -> StagePlan:
    device = resolve_device()
    precision = stage.precision
    if precision == "auto":
        precision = "bfloat16" if supports_bfloat16(device) else "float32"
    in_bfloat16 = precision == "bfloat16"
    model, processor = load_model(recipe, name, weights=False)
    freeze_all_but(model, stage.train, vision_blocks=stage.vision_blocks, levels_given=name == "pretrain")
    notes = []
    data = measured = None
    missing = [source.data for source in stage.sources if not is_there(Path(source.data))]
    problems, longest = source_problems(recipe, (name,)), stage.max_length
    try:
        longest = usable_length(model, stage)
    except RecipeError as error:
        problems.append(str(error))
    if name == "instruct" and not source_problems(recipe, ("pretrain",)):
        notes += [] if (warning := swapped_warning(recipe)) is None else [warning]
    if not problems:
        notes += [] if (warning := other_origin(recipe, name)) is None else [warning]
    if name == "instruct":
        try:
            check_run_folder(recipe)
            notes += [] if (warning := without_pretraining(recipe)) is None else [warning]
        except RecipeError as error:
            problems.append(str(error))
    if not missing:
        data = _data_plan(recipe, name, stage, processor, longest)
        measured = data if data.unusable is None else None
        notes += [] if data.cut_off is None else [data.cut_off]
        trouble = untrained_top_level(data.without_samples, recipe, name)
        # Data without any levels has been reported already.
        if trouble is not None and not problems:
            problems.append(trouble)
        elif trouble is None and (warning := untrained_levels_warning(data.without_samples, recipe)):
            notes.append(warning)
        if data.unusable is not None:
            notes.append(f"none of the rows looked at can be trained on (the first: {data.unusable})")
    else:
        length, _ = _supposed(name, stage, processor)
        notes.append(f"no data at {', '.join(missing)}: assuming rows of {length:,} tokens; number of steps unknown")
    if stage.minutes is not None:
        at_least = f", but not before step {stage.min_steps:,}" if stage.min_steps else ""
        notes.append(f"training ends after {stage.minutes:g} minutes if the steps take longer{at_least}")
    if stage.validation is not None and stage.validation.until_accuracy is not None and stage.validation.rounds > 1:
        notes.append(
            f"the time is that of one round; up to {stage.validation.rounds} follow each other until "
            f"{stage.validation.until_accuracy:.0%} of the validation answers are right"
        )
    parts = parts_of(model, stage)
    steps = _steps(stage, data)
    row = (measured.longest, measured.counted) if measured else _supposed(name, stage, processor)
    estimate = MemoryEstimate(model, parts, stage, row, in_bfloat16=in_bfloat16)
    memory = estimate.plan()
    if estimate.without_layers is not None:
        notes.append(estimate.without_layers)
    work = None
    if measured and steps:
        work = _work(model, measured, recomputed=estimate.share) * _rows_of(steps, stage, measured)
    rate = matrix_product_rate(device, torch.bfloat16 if in_bfloat16 else torch.float32) if work else 1.0
    if stage.sharding != "none":
        notes.append(sharded_note(memory, stage, parts, in_bfloat16=in_bfloat16))
    elif stage.gradient_checkpointing and (advice := estimate.advice(device_memory(device))) is not None:
        notes.append(advice)
    before = _warm_start_work(model, parts, stage, measured) if measured else 0.0
    warm_start = before / (ATTAINABLE * matrix_product_rate(device, torch.float32)) if before else 0.0
    all_steps = work / (ATTAINABLE * rate) if work else None
    training = _within_minutes(stage, all_steps, steps) if all_steps and steps else None
    return StagePlan(
        stage=name,
        parts=parts,
        data=data,
        steps=steps,
        memory=memory,
        work=work,
        seconds=None if training is None else training + warm_start,
        warm_start=warm_start,
        all_steps=all_steps if all_steps is not None and training is not None and training < all_steps else None,
        precision=precision,
        notes=tuple(notes),
        problems=tuple(problems),
        speed=_speed(model, stage, measured, device) if measured else (),
    )


def _speed(
    model: AlignGPTForConditionalGeneration, stage: StageRecipe, data: DataPlan, device: torch.device
) -> tuple[str, ...]:
    flops = ModelFlops.of(model)
    figures = {"tokens": data.tokens, "counted": data.counted, "images": data.images}
    return flops_lines(flops, stage.batch_size, **figures, device=device)


def _within_minutes(stage: StageRecipe, seconds: float, steps: int) -> float:
    """The seconds of one round of training: those of all steps, or fewer if the recipe's minutes end it earlier."""
    if stage.minutes is None:
        return seconds
    at_least = seconds / steps * min(stage.min_steps or 0, steps)
    return min(seconds, max(60 * stage.minutes, at_least))


def _warm_start_work(
    model: AlignGPTForConditionalGeneration, parts: Sequence[PartRow], stage: StageRecipe, data: DataPlan
) -> float:
    """Floating-point operations of the warm start: the tower for each pair, and the projector's steps."""
    if stage.warm_start is None:
        return 0.0
    size = {row.part: row.parameters for row in parts}
    pairs = min(stage.warm_start.max_pairs, data.samples)
    tokens = model.config.image_seq_length
    of_tower = pairs * model.config.tower_tokens * 2 * size["vision_tower"]
    seen = stage.warm_start.steps * min(stage.warm_start.batch_size, pairs)
    return of_tower + seen * tokens * 6 * size["projector"]


def _supposed(name: StageName, stage: StageRecipe, processor: AlignGPTProcessor) -> tuple[int, float]:
    """Assumed tokens in a long row, and those in the loss, if there is no data to sample."""
    if name == "pretrain":
        return min(stage.max_length, processor.image_seq_length + CAPTION_TOKENS), CAPTION_TOKENS
    return stage.max_length, stage.max_length / 2


def _steps(stage: StageRecipe, data: DataPlan | None) -> int | None:
    if stage.max_steps is not None or data is None:
        return stage.max_steps
    # The last batch of an epoch may be smaller.
    return math.ceil(stage.epochs * math.ceil(data.epoch_rows / stage.batch_size))


def _rows_of(steps: int, stage: StageRecipe, data: DataPlan) -> int:
    """Number of rows of the steps; the last step of each epoch may have fewer than a batch."""
    epochs, more = divmod(steps, math.ceil(data.epoch_rows / stage.batch_size))
    return epochs * data.epoch_rows + more * stage.batch_size


def _data_plan(
    recipe: Recipe, name: StageName, stage: StageRecipe, processor: AlignGPTProcessor, longest: int
) -> DataPlan:
    """Count samples, and the tokens of some rows, whose samples are cut off after `longest` tokens.

    The remaining rows are assumed to be similar.
    """
    rejects = Rejects(None, max_share=stage.max_reject_share)
    sources = [_without_missing_root(one) for one in stage.sources]
    samples = open_sources(sources, rejects, check_images=False, min_ratings=stage.min_ratings)
    if stage.validation is not None and stage.validation.share is not None:
        samples = training_part(samples, stage.validation.share)
    rows = rows_of(samples, stage.questions_per_prefix, by_level=name == "pretrain")
    shares = shares_of(samples, rows, [source.weight for source in stage.sources])
    looked_at = random.Random(recipe.seed).sample(rows, min(LOOKED_AT, len(rows)))
    found = [_row_figures([samples[place] for place in row], stage, processor, longest) for row in looked_at]
    figures = [one for one in found if isinstance(one, _RowFigures)]
    count = max(1, len(figures))
    return DataPlan(
        samples=len(samples),
        rows=len(rows),
        epoch_rows=sum(share.drawn for share in shares) if shares else len(rows),
        tokens=sum(one.tokens for one in figures) / count,
        counted=sum(one.counted for one in figures) / count,
        longest=max((one.tokens for one in figures), default=0),
        images=sum(one.images for one in figures) / count,
        unusable=None if figures else next(one for one in found if isinstance(one, str)),
        without_samples=levels_without_samples(samples, recipe, name),
        cut_off=cut_off_warning(samples, recipe, name, processor, longest),
    )


class _RowFigures(NamedTuple):
    tokens: int
    counted: int
    images: int


def _row_figures(
    samples: Sequence[Sample], stage: StageRecipe, processor: AlignGPTProcessor, longest: int
) -> _RowFigures | str:
    """Token and image counts of one row; samples that share images count the image tokens once.

    Samples that cannot be trained on are left out; if no other is left, the result says why.
    """
    template = NAMED_TEMPLATES[stage.chat_template] if stage.chat_template else None
    tokens = counted = 0
    images, trouble = len(samples[0].images), ""
    for sample in samples:
        try:
            ids, labels = tokenize(sample.messages(), processor, chat_template=template, max_length=longest)
        except ExampleError as error:
            trouble = str(error)
            continue
        shared = images * processor.image_seq_length if tokens else 0
        tokens += len(ids) - shared
        counted += sum(label != IGNORE_INDEX for label in labels)
    return _RowFigures(tokens, counted, images) if tokens else trouble


def _work(model: AlignGPTForConditionalGeneration, data: DataPlan, *, recomputed: float) -> float:
    """Floating-point operations for one row, as `flops_lines` says them, and those of the recomputed layers.

    `recomputed` is the fraction of the language model's layers whose forward pass runs twice.
    """
    row = _row_flops(ModelFlops.of(model), data)
    if not recomputed:
        return sum(row)
    again = _row_flops(_forward_flops(model), data)
    return sum(row) + recomputed * (again.layers + again.attention)


def _row_flops(flops: ModelFlops, data: DataPlan) -> Flops:
    keys = torch.arange(1, max(1, round(data.tokens)) + 1)
    row = flops.of_batch(keys, round(data.counted), encoded=1, projected=1)
    return row._replace(tower=data.images * row.tower, projector=data.images * row.projector)


def _forward_flops(model: AlignGPTForConditionalGeneration) -> ModelFlops:
    """The operations of the forward pass alone: those of the model if nothing trains."""
    trained = [one for one in model.parameters() if one.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        return ModelFlops.of(model)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _without_missing_root(source: SourceRecipe) -> SourceRecipe:
    """Drop an image root that does not exist yet: a dry run reads no images, so that is not an error."""
    there = source.image_root is not None and located(source.image_root).is_dir()
    return source if there else source.model_copy(update={"image_root": None})


def _duration(seconds: float) -> str:
    for size, word in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} seconds"
