"""A training run: the stages of a recipe, each done once, gone on with after a kill, and left as files."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import set_seed

from aligngpt.data.collate import Collator
from aligngpt.data.dataset import ConversationDataset
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples import Sample
from aligngpt.data.sources import load_samples
from aligngpt.device import resolve_device, supports_bfloat16
from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_folder, atomic_write, sha256_of
from aligngpt.memory import peak_memory, reset_peak_memory
from aligngpt.model.adapters import save_adapter
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.model.templates import NAMED_TEMPLATES
from aligngpt.progress import console
from aligngpt.training.checkpoints import checkpoint_seconds, newest_checkpoint, remove_checkpoints, step_of
from aligngpt.training.lora import merge_lora
from aligngpt.training.parts import parts_of, parts_table
from aligngpt.training.processes import is_main_process, launched, main_process_first, rank
from aligngpt.training.recipe import STAGES, LoraRecipe, Recipe, RecipeError, StageName, StageRecipe
from aligngpt.training.stages import (
    freeze_all_but,
    hold_frozen_in,
    save_pretrained_parts,
    trained_tensors,
)
from aligngpt.training.start import check_rows_can_branch, decide_packing, load_model, stage_folder, usable_length
from aligngpt.training.trainer import StageCallback, StageTrainer, TrainingClock, forget_metrics_after
from aligngpt.training.validation import Validation
from aligngpt.training.warm_start import warm_start

DESCRIPTIONS = {"pretrain": "pre-training", "instruct": "instruction tuning"}
WITHOUT_EFFECT = {"checkpoint_minutes", "log_steps", "workers", "max_reject_share", "validation"}


@dataclass(frozen=True)
class StageResult:
    """What one stage took.

    Attributes:
        stage: `pretrain` or `instruct`.
        fingerprint: of everything that decides its result.
        steps: optimiser steps.
        samples: training samples seen, from the mean number of samples in a row.
        seconds: training time over all runs of the stage.
        peak_memory: of this process while it trained, in bytes.
        loss: mean of the last logged steps.
        rejects: samples that could not be used.
    """

    stage: StageName
    fingerprint: str
    steps: int
    samples: int
    seconds: float
    peak_memory: int
    loss: float
    rejects: int


def model_folder(recipe: Recipe) -> Path:
    """Where instruction tuning leaves the model."""
    return Path(recipe.output) / "model"


def base_folder(recipe: Recipe) -> Path:
    """Where instruction tuning leaves the model as it found it, where it leaves adapters beside it."""
    return Path(recipe.output) / "base"


def train(recipe: Recipe, stages: Sequence[StageName] = STAGES) -> list[StageResult]:
    """Run the stages of a recipe that are not done yet; a stage that was stopped goes on from its last checkpoint.

    Leaves `pretrain/aligned.safetensors` (projector and level table) and `model/` (a complete model folder) under the
    recipe's output, and for each stage its `metrics.jsonl` and `stage.json`.

    Returns:
        What each stage took, those done earlier included.

    Raises:
        RecipeError: the recipe has none of the `stages`, or the output holds the run of another recipe.
        AlignGPTError: a backbone, the data or a checkpoint cannot be used.
    """
    wanted = [(name, stage) for name in STAGES if name in stages and (stage := recipe.stage(name)) is not None]
    if not wanted:
        raise RecipeError(f"the recipe has no section {' or '.join(stages)}")
    results = []
    for name, stage in wanted:
        fingerprint = _fingerprint(recipe, name, stage)
        done = stage_result(recipe, name)
        if done is not None and done.fingerprint != fingerprint:
            raise RecipeError(
                f"{stage_folder(recipe, name)} holds a finished stage with other settings or data; choose another "
                "output or remove that folder to train again"
            )
        if done is None:
            done = _run_stage(recipe, name, stage, fingerprint)
        else:
            if is_main_process():
                console.print(f"{DESCRIPTIONS[name]}: done before ({done.steps} steps, loss {done.loss:.3f})")
        results.append(done)
    return results


def stage_result(recipe: Recipe, name: StageName) -> StageResult | None:
    """What a finished stage took; None while it is not finished."""
    path = stage_folder(recipe, name) / "stage.json"
    if not path.is_file():
        return None
    try:
        return StageResult(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise AlignGPTError(f"{path} is damaged ({error}); remove {path.parent} to train again") from error


def _run_stage(recipe: Recipe, name: StageName, stage: StageRecipe, fingerprint: str) -> StageResult:
    folder = stage_folder(recipe, name)
    folder.mkdir(parents=True, exist_ok=True)
    device = resolve_device()
    with main_process_first(cpu=device.type == "cpu"):
        _claim(folder, fingerprint)
        in_bfloat16 = _precision(stage, device, folder) == "bfloat16"
    reset_peak_memory()
    set_seed(recipe.seed)
    image_root = Path(stage.image_root) if stage.image_root else None
    name_of_rejects = "rejects.jsonl" if is_main_process() else f"rejects-{rank()}.jsonl"
    with Rejects(folder / name_of_rejects, max_share=stage.max_reject_share) as rejects:
        samples = load_samples(
            Path(stage.data), image_root=image_root, require_level=_needs_level(recipe, name), rejects=rejects
        )
        _check_levels(samples, recipe, name)
        model, processor = load_model(recipe, name)
        freeze_all_but(model, stage.train, vision_blocks=stage.vision_blocks)
        if is_main_process():
            console.print(f"{DESCRIPTIONS[name]}\n{parts_table(parts_of(model, stage))}", highlight=False)
        dataset = ConversationDataset(
            samples,
            processor,
            image_root or Path(stage.data).parent,
            rejects,
            chat_template=NAMED_TEMPLATES[stage.chat_template] if stage.chat_template else None,
            max_length=usable_length(model, stage),
            questions_per_prefix=stage.questions_per_prefix,
            pad_images=stage.pad_images,
        )
        check_rows_can_branch(model, stage)
        if stage.warm_start is not None and newest_checkpoint(folder / "checkpoints") is None:
            moved = warm_start(model, dataset, stage.warm_start, seed=recipe.seed)
            with atomic_write(folder / "warm_start.json") as file:
                json.dump(moved._asdict(), file)
        clock = TrainingClock(stage.minutes)
        packed = decide_packing(model, recipe, stage, device.type)
        collator = Collator(processor.tokenizer.pad_token_id, packed=packed)
        validation = _validation(stage, dataset, collator)
        if in_bfloat16 and (name == "pretrain" or stage.lora is not None):
            hold_frozen_in(model, torch.bfloat16)
        arguments = _arguments(recipe, stage, device, folder, in_bfloat16=in_bfloat16)
        try:
            trainer = StageTrainer(
                stage,
                clock,
                model=model,
                args=arguments,
                train_dataset=dataset,
                data_collator=collator.with_ids,
                callbacks=[StageCallback(DESCRIPTIONS[name], stage, clock, folder / "metrics.jsonl", validation)],
            )
        except (ValueError, RuntimeError, ImportError) as error:
            if not recipe.report_to:
                raise
            raise RecipeError(f"report_to {', '.join(recipe.report_to)} cannot be used: {error}") from error
        _go_on(trainer, clock, folder)
        steps = trainer.state.global_step
        result = StageResult(
            stage=name,
            fingerprint=fingerprint,
            steps=steps,
            samples=round(steps * stage.batch_size * len(samples) / len(dataset)),
            seconds=round(clock.seconds, 1),
            peak_memory=peak_memory(),
            loss=_last_loss(folder / "metrics.jsonl"),
            rejects=rejects.count,
        )
    if trainer.is_world_process_zero():
        _leave(recipe, name, model, processor, folder, result)
    trainer.accelerator.wait_for_everyone()
    return result


def _arguments(
    recipe: Recipe, stage: StageRecipe, device: torch.device, folder: Path, *, in_bfloat16: bool
) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=stage.micro_batch_size or stage.batch_size,
        num_train_epochs=stage.epochs,
        max_steps=stage.max_steps or -1,
        max_grad_norm=stage.max_grad_norm,
        activation_checkpointing=stage.gradient_checkpointing,
        logging_steps=stage.log_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        bf16=in_bfloat16,
        use_cpu=device.type == "cpu",
        seed=recipe.seed,
        data_seed=recipe.seed,
        dataloader_num_workers=stage.workers,
        remove_unused_columns=False,
        ddp_backend="gloo" if device.type == "cpu" and launched() else None,
        report_to=recipe.report_to or "none",
        disable_tqdm=True,
    )
    arguments.gradient_accumulation_steps = _accumulation(stage, arguments.world_size * max(1, arguments.n_gpu))
    return arguments


def _validation(stage: StageRecipe, training: ConversationDataset, collator: Collator) -> Validation | None:
    """The stage's validation data, read as its training data is; what cannot be used of it is passed over."""
    if stage.validation is None:
        return None
    rejects = Rejects(None, max_share=stage.max_reject_share)
    samples = load_samples(Path(stage.validation.data), image_root=training.image_root, rejects=rejects)
    dataset = ConversationDataset(
        samples[: stage.validation.samples],
        training.processor,
        training.image_root,
        rejects,
        chat_template=training.chat_template,
        max_length=training.max_length,
        questions_per_prefix=stage.questions_per_prefix,
        pad_images=stage.pad_images,
    )
    return Validation(dataset, collator, stage.micro_batch_size or stage.batch_size)


def _go_on(trainer: StageTrainer, clock: TrainingClock, folder: Path) -> None:
    """Train to the end, from the newest complete checkpoint where there is one."""
    checkpoints = folder / "checkpoints"
    newest = newest_checkpoint(checkpoints)
    remove_checkpoints(checkpoints, keep=newest)
    step = 0
    if newest is not None:
        clock.before = checkpoint_seconds(newest)
        step = step_of(newest)
        if is_main_process():
            console.print(f"going on from step {step}")
    forget_metrics_after(folder / "metrics.jsonl", step)
    callback = next(one for one in trainer.callback_handler.callbacks if isinstance(one, StageCallback))
    try:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    except BaseException as error:
        callback.close(error)
        raise
    callback.close()


def _leave(
    recipe: Recipe,
    name: StageName,
    model: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    folder: Path,
    result: StageResult,
) -> None:
    stage = recipe.stage(name)
    lora = None if stage is None else stage.lora
    if name == "pretrain":
        save_pretrained_parts(model, folder)
    elif lora is not None and not lora.merge:
        _leave_adapter(recipe, lora, trained_tensors(model))
    else:
        if lora is not None:
            # The frozen weights were held in less precision than they came in: back to those, and the adapters on top.
            trained = trained_tensors(model)
            model, processor = load_model(recipe, name)
            model.load_state_dict(trained, strict=False)
            merge_lora(model)
        with atomic_folder(model_folder(recipe)) as temporary:
            model.save_pretrained(temporary)
            processor.save_pretrained(temporary)
    with atomic_write(folder / "stage.json") as file:
        json.dump(asdict(result), file, indent=2)
    remove_checkpoints(folder / "checkpoints", keep=None)


def _leave_adapter(recipe: Recipe, lora: LoraRecipe, trained: dict[str, torch.Tensor]) -> None:
    """Leave what instruction tuning trained as an adapter folder, and beside it the model that this belongs to."""
    assert recipe.instruct is not None
    instruct = recipe.instruct.model_copy(update={"lora": None})
    base, processor = load_model(recipe.model_copy(update={"instruct": instruct}), "instruct")
    with atomic_folder(base_folder(recipe)) as temporary:
        base.save_pretrained(temporary)
        processor.save_pretrained(temporary)
    with atomic_folder(model_folder(recipe)) as temporary:
        save_adapter(
            temporary,
            base,
            processor,
            trained,
            base_folder=base_folder(recipe),
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
        )


def _precision(stage: StageRecipe, device: torch.device, folder: Path) -> str:
    """What the stage computes in. `auto` is decided once: a stage that goes on computes as it began."""
    if stage.precision != "auto":
        return stage.precision
    path = folder / "precision"
    if not path.is_file():
        with atomic_write(path) as file:
            file.write("bfloat16" if supports_bfloat16(device) else "float32")
    return path.read_text(encoding="utf-8")


def _accumulation(stage: StageRecipe, devices: int) -> int:
    micro = (stage.micro_batch_size or stage.batch_size) * devices
    if stage.batch_size % micro:
        raise RecipeError(
            f"batch_size {stage.batch_size} cannot be made of {devices} devices with micro_batch_size "
            f"{stage.micro_batch_size or stage.batch_size}; set it to {stage.batch_size // devices} or less"
        )
    return stage.batch_size // micro


def _needs_level(recipe: Recipe, name: StageName) -> bool:
    return name == "pretrain" and recipe.model.alignment != "none"


def _check_levels(samples: Sequence[Sample], recipe: Recipe, name: StageName) -> None:
    top = max((sample for sample in samples if sample.level is not None), key=lambda one: one.level or 0, default=None)
    if _needs_level(recipe, name) and top is not None and (top.level or 0) > recipe.model.num_levels:
        raise RecipeError(
            f"record {top.record} (id {top.id}) is of level {top.level}, but model.num_levels is "
            f"{recipe.model.num_levels}; set it to the number the data was made with"
        )


def _fingerprint(recipe: Recipe, name: StageName, stage: StageRecipe) -> str:
    try:
        with Path(stage.data).open("rb") as file:
            data = sha256_of(file)
    except OSError as error:
        raise AlignGPTError(f"the training data {stage.data} cannot be read: {error}") from error
    settings: dict[str, Any] = {
        # Without defaults, so that a setting which is new to the program leaves old runs what they are.
        "model": recipe.model.model_dump(mode="json", exclude_defaults=True),
        "stage": stage.model_dump(mode="json", exclude=WITHOUT_EFFECT, exclude_defaults=True),
        "seed": recipe.seed,
        "data": data,
    }
    if name == "instruct" and recipe.pretrain is not None:
        settings["pretrain"] = _fingerprint(recipe, "pretrain", recipe.pretrain)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _claim(folder: Path, fingerprint: str) -> None:
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


def _last_loss(metrics: Path) -> float:
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    losses = [figures["loss"] for line in lines if "loss" in (figures := json.loads(line))][-5:]
    return sum(losses) / len(losses) if losses else float("nan")
