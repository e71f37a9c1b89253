"""One stage of a run: its model and data are prepared, it trains from its newest checkpoint, and leaves its result."""

import json
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from transformers.trainer_utils import set_seed

from aligngpt.data.batches.budget import TokenBudget
from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.dataset import ConversationDataset, rows_digest
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.columns import columns_of
from aligngpt.device import peak_device_memory, peak_memory, release_memory, reset_peak_memory, resolve_device
from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.progress import say, warn
from aligngpt.training.distributed.agreement import check_same
from aligngpt.training.distributed.fsdp import check_sharding, reads_weights, shard, sharding_line, whole_tensors
from aligngpt.training.distributed.processes import (
    from_main,
    is_main_process,
    main_process_first,
    processes,
)
from aligngpt.training.distributed.weights_from_main import has_other_tensors
from aligngpt.training.export import export_model
from aligngpt.training.feed.collators import check_open_files, collators_of
from aligngpt.training.feed.datasets import training_data, training_samples, validation_of
from aligngpt.training.feed.feature_cache import features_kept_for
from aligngpt.training.feed.level_checks import levels_without_samples, untrained_levels_warning
from aligngpt.training.finished import (
    note_start,
)
from aligngpt.training.loop.callback import StageCallback, forget_metrics_after
from aligngpt.training.loop.checkpoints import checkpoint_seconds, newest_checkpoint, remove_checkpoints, step_of
from aligngpt.training.loop.rejected import RejectedSamples
from aligngpt.training.loop.schedule import TrainingClock
from aligngpt.training.loop.trainer import STOPPED_FILE, StageTrainer
from aligngpt.training.loop.validation import Validation
from aligngpt.training.origin import origin_of
from aligngpt.training.recipe import Recipe, RecipeError, StageName, StageRecipe
from aligngpt.training.run_card import DataFacts
from aligngpt.training.run_folder import save_recipe
from aligngpt.training.setup.arguments import arguments_of
from aligngpt.training.setup.compiling import compile_layers
from aligngpt.training.setup.freezing import freeze_all_but, hold_frozen_in, hold_trained_in_bfloat16
from aligngpt.training.setup.loading import load_model
from aligngpt.training.setup.parameter_summary import parts_of, parts_table
from aligngpt.training.setup.pretrained_parts import is_pretrained, save_pretrained_parts
from aligngpt.training.setup.row_attention import check_rows_can_branch, decide_packing, keep_masks, pack_rows
from aligngpt.training.setup.warm_start import CachedFeatures, warm_start
from aligngpt.training.stage import (
    DESCRIPTIONS,
    StageResult,
    claim,
    claimed,
    decide_precision,
    stage_folder,
)

SECONDS_TO_BE_SEEN = 60.0
"""How long a file may take until the other machines of a network file system see it."""


@dataclass(frozen=True)
class _Place:
    """Where a stage runs, and in which precision.

    Args:
        folder: of the stage's files.
        device: of this process.
        in_bfloat16: the stage computes in bfloat16, else in float32.
    """

    folder: Path
    device: torch.device
    in_bfloat16: bool

    @property
    def checkpoints(self) -> Path:
        """The folder of the stage's checkpoints."""
        return self.folder / "checkpoints"

    @property
    def computes_in(self) -> torch.dtype:
        """The data type that the stage computes in."""
        return torch.bfloat16 if self.in_bfloat16 else torch.float32


@dataclass(frozen=True)
class _Prepared:
    """What a stage trains, and on what.

    Args:
        model, processor: of the stage; what does not train is frozen.
        dataset: the training data.
        collator, budget: put its rows together; see `collators_of`.
        validation: None if the stage has no validation data.
        frozen_in_bfloat16: frozen weights are held in lower precision than their source has.
        features_of: the cached features of images, if the stage caches them.
    """

    model: AlignGPTForConditionalGeneration
    processor: AlignGPTProcessor
    dataset: ConversationDataset
    collator: Collator
    budget: TokenBudget | None
    validation: Validation | None
    frozen_in_bfloat16: bool
    features_of: CachedFeatures | None


def run_stage(recipe: Recipe, name: StageName, stage: StageRecipe, fingerprint: str) -> StageResult:
    """Train a stage to its end, from its newest checkpoint if there is one, and write its result.

    Args:
        recipe: of the run.
        name, stage: the stage and its section.
        fingerprint: see `fingerprint_of`.

    Raises:
        RecipeError, AlignGPTError: see `train`.
    """
    place = _claimed(recipe, name, stage, fingerprint)
    check_sharding(stage)
    check_open_files(stage)
    release_memory()  # The stage before, if this process trained it.
    knows_peak = reset_peak_memory(place.device)
    set_seed(recipe.seed)
    # All processes count the same rejects; only the main process writes them to the file.
    path_of_rejects = place.folder / "rejects.jsonl" if is_main_process() else None
    with Rejects(path_of_rejects, max_share=stage.max_reject_share) as rejects:
        prepared = _prepare(recipe, name, stage, place, rejects)
        samples = len(prepared.dataset.samples)
        trainer, callback = _trainer(
            recipe, name, stage, place, prepared, RejectedSamples(rejects, samples + rejects.count)
        )
        _train_from_checkpoint(trainer, callback, place)
        result = StageResult(
            stage=name,
            fingerprint=fingerprint,
            steps=trainer.state.global_step,
            samples=round(trainer.rows_seen * samples / len(prepared.dataset)),
            seconds=round(trainer.clock.seconds, 1),
            peak_memory=peak_memory() if knows_peak else None,
            peak_device_memory=peak_device_memory(trainer.args.device),
            loss=_last_loss(place.folder / "metrics.jsonl"),
            rejects=rejects.count,
        )
    _write_result(recipe, name, stage, place, prepared, trainer, result)
    return result


def _claimed(recipe: Recipe, name: StageName, stage: StageRecipe, fingerprint: str) -> _Place:
    """Make the folder of a stage its own, and check that all processes see the same in it."""
    folder = stage_folder(recipe, name)
    folder.mkdir(parents=True, exist_ok=True)
    device = resolve_device()
    with main_process_first(cpu=device.type == "cpu"):
        if is_main_process():
            claim(folder, fingerprint)
        place = _Place(folder, device, decide_precision(stage, device, folder) == "bfloat16")
    seen = "that of the main process" if claimed(folder, fingerprint, SECONDS_TO_BE_SEEN) else "one of its own"
    check_same(f"the output folder {recipe.output}", seen)
    newest = newest_checkpoint(place.checkpoints)
    check_same(f"the checkpoints in {place.checkpoints}", "none" if newest is None else newest.name)
    if is_main_process():
        save_recipe(recipe)
        if name == "instruct":
            note_start(recipe)
        (folder / STOPPED_FILE).unlink(missing_ok=True)
    return place


def _prepare(recipe: Recipe, name: StageName, stage: StageRecipe, place: _Place, rejects: Rejects) -> _Prepared:
    """The model and the data of a stage; the main process shows what trains."""
    samples = training_samples(recipe, name, rejects)
    model, processor = load_model(recipe, name, weights=reads_weights(stage), bits_in=place.computes_in)
    if has_other_tensors(model):
        # These could not be sent.
        model, processor = load_model(recipe, name, bits_in=place.computes_in)
    # Processes that read shapes only take from the configuration what others see in the weights.
    check_same(
        "whether the output layer is tied",
        str(model.config.tie_word_embeddings),
        f"set tie_word_embeddings in the config.json of {recipe.model.language_model} to what its weights are",
    )
    freeze_all_but(model, stage.train, vision_blocks=stage.vision_blocks, levels_given=name == "pretrain")
    if is_main_process():
        DataFacts.of([Path(source.data) for source in stage.sources], samples).save(place.folder)
        say(f"{DESCRIPTIONS[name]}\n{parts_table(parts_of(model, stage))}")
        if warning := untrained_levels_warning(levels_without_samples(samples, recipe, name), recipe):
            warn(warning)
    dataset = training_data(samples, recipe, name, model, processor)
    check_same(f"the usable samples of {name}.data", f"{len(samples)} samples (digest {rows_digest(dataset)[:12]})")
    if name == "instruct" and is_main_process() and (columns_of(samples).levels > 0).any():
        say("the levels in the data are ignored: in instruction tuning the gate mixes the levels")
    # Both are decided by running the model, which some processes do not have yet.
    if packed := from_main(lambda: decide_packing(model, recipe, stage, place.device, place.computes_in)):
        pack_rows(model)
    else:
        from_main(lambda: check_rows_can_branch(model, stage))
        keep_masks(model, place.device)
    collator, budget = collators_of(stage, processor.tokenizer.pad_token_id, place.device, packed=packed)
    validation = validation_of(recipe, name, dataset, collator, budget)
    frozen_in_bfloat16 = place.in_bfloat16 and hold_frozen_in(model, torch.bfloat16)
    if stage.weight_precision == "bfloat16":
        hold_trained_in_bfloat16(model)
    features_of = None
    if stage.cache_features:
        cache = from_main(lambda: features_kept_for(dataset, model, place.device, in_bfloat16=place.in_bfloat16))
        dataset.known_features = cache
        features_of = partial(cache.features_of, model, in_bfloat16=place.in_bfloat16)
    return _Prepared(model, processor, dataset, collator, budget, validation, frozen_in_bfloat16, features_of)


def _trainer(
    recipe: Recipe, name: StageName, stage: StageRecipe, place: _Place, prepared: _Prepared, rejected: RejectedSamples
) -> tuple[StageTrainer, StageCallback]:
    """The trainer of a stage whose model is warmed up, shared out and compiled as the stage says."""
    model, dataset = prepared.model, prepared.dataset
    # The others take the weights from the main process, as soon as the model is sharded or wrapped.
    if stage.warm_start is not None and is_main_process() and newest_checkpoint(place.checkpoints) is None:
        if stage.sharding == "none":
            # A sharded model may be too large for one device.
            model.to(place.device)
        moved = warm_start(model, dataset, stage.warm_start, seed=recipe.seed, cached=prepared.features_of)
        with atomic_write(place.folder / "warm_start.json") as file:
            json.dump(moved._asdict(), file)
    arguments = arguments_of(recipe, stage, place.checkpoints, place.device, in_bfloat16=place.in_bfloat16)
    if stage.sharding != "none":
        _share_out(model, stage, arguments.device, in_bfloat16=place.in_bfloat16)
    if stage.compile:
        compile_layers(model, place.device)
    clock = TrainingClock(stage.minutes, stage.min_steps)
    try:
        callback = StageCallback(DESCRIPTIONS[name], stage, clock, place.folder / "metrics.jsonl", prepared.validation)
        trainer = StageTrainer(
            stage,
            clock,
            rejected,
            budget=prepared.budget,
            model=model,
            args=arguments,
            train_dataset=dataset,
            data_collator=prepared.collator.with_ids,
            callbacks=[callback],
        )
        callback.trainer = trainer
    except (ValueError, RuntimeError, ImportError) as error:
        if not recipe.report_to:
            raise
        raise RecipeError(f"report_to {', '.join(recipe.report_to)} cannot be used: {error}") from error
    return trainer, callback


def _write_result(
    recipe: Recipe,
    name: StageName,
    stage: StageRecipe,
    place: _Place,
    prepared: _Prepared,
    trainer: StageTrainer,
    result: StageResult,
) -> None:
    """Write what a finished stage leaves: its weights or the model, then `stage.json`; its checkpoints are removed."""
    model = prepared.model
    # If the frozen weights are held in lower precision than their source, or sharded, they are read again.
    as_it_is = name == "instruct" and stage.lora is None and not trainer.is_sharded and not prepared.frozen_in_bfloat16
    # Gathering sharded tensors takes all processes.
    tensors = (
        {}
        if as_it_is
        else whole_tensors(model, lambda key, one: is_pretrained(key) if name == "pretrain" else one.requires_grad)
    )
    if is_main_process():
        if name == "pretrain":
            save_pretrained_parts(tensors, place.folder, origin_of(recipe))
        else:
            export_model(recipe, model if as_it_is else None, prepared.processor, tensors)
        with atomic_write(place.folder / "stage.json") as file:
            json.dump(asdict(result), file, indent=2)
        remove_checkpoints(place.checkpoints, keep=None)
    trainer.accelerator.wait_for_everyone()


def _share_out(
    model: AlignGPTForConditionalGeneration, stage: StageRecipe, device: torch.device, *, in_bfloat16: bool
) -> None:
    if processes() == 1:
        say(
            f"sharding {stage.sharding}: there is only one process, so nothing is sharded; start several with "
            "torchrun --nproc_per_node N $(which aligngpt) train …"
        )
        return
    shard(model, stage.sharding, device, in_bfloat16=in_bfloat16)
    line = sharding_line(model)
    if is_main_process():
        say(line)


def _train_from_checkpoint(trainer: StageTrainer, callback: StageCallback, place: _Place) -> None:
    """Train to the end, from the newest complete checkpoint if there is one."""
    newest = newest_checkpoint(place.checkpoints, verify=True)
    remove_checkpoints(place.checkpoints, keep=newest)
    step = 0
    if newest is not None:
        trainer.clock.before = checkpoint_seconds(newest)
        trainer.rejected.resume(newest)
        callback.resumed_from = newest
        step = step_of(newest)
        if is_main_process():
            say(f"resuming at step {step}")
    if is_main_process():
        forget_metrics_after(place.folder / "metrics.jsonl", step)
    try:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    except BaseException as error:
        # torch's handler would raise again for every further worker that ends, in the middle of what follows.
        with suppress(ValueError, AttributeError):  # Not in the main thread; not on Windows.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        callback.close(error)
        if isinstance(error, AlignGPTError) and str(error).startswith("Caught "):
            # torch's message of a worker's error is its stack trace, which ends with the error's own message.
            raise AlignGPTError(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from error
        # torch raises this at any point after a worker was killed, mostly by the system because memory ran out.
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            raise AlignGPTError(
                f"a worker process that reads images died ({error}); if the machine ran out of memory, lower "
                "workers in the recipe. Run the same command again to resume at the last checkpoint"
            ) from error
        raise
    callback.close()


def _last_loss(metrics: Path) -> float:
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    losses = [figures["loss"] for line in lines if "loss" in (figures := json.loads(line))][-5:]
    return sum(losses) / len(losses) if losses else float("nan")
