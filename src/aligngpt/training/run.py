"""A training run: the stages of a recipe, each run once and resumed where it was interrupted."""

import json
import signal
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import set_seed

from aligngpt.data.batches.dataset import rows_digest
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.columns import columns_of
from aligngpt.device import peak_device_memory, peak_memory, reset_peak_memory, resolve_device
from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.leftovers import remove_leftovers
from aligngpt.locks import owned_folder
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.progress import console
from aligngpt.training.distributed.agreement import check_same
from aligngpt.training.distributed.fsdp import check_sharding, reads_weights, shard, sharding_line, whole_tensors
from aligngpt.training.distributed.processes import (
    from_main,
    is_main_process,
    join_processes,
    launched,
    main_process_first,
    processes,
)
from aligngpt.training.distributed.weights_from_main import has_other_tensors
from aligngpt.training.export import export_model
from aligngpt.training.feed.collators import check_open_files, collators_of, rows_per_batch
from aligngpt.training.feed.datasets import training_data, training_samples, validation_of
from aligngpt.training.feed.feature_cache import features_kept_for
from aligngpt.training.feed.level_checks import levels_without_samples, untrained_levels_warning
from aligngpt.training.feed.source_checks import source_problems, swapped_warning
from aligngpt.training.finished import (
    check_output,
    check_pretrained,
    check_start,
    note_start,
    other_settings,
    without_pretraining,
)
from aligngpt.training.loop.callback import StageCallback, forget_metrics_after
from aligngpt.training.loop.checkpoints import checkpoint_seconds, newest_checkpoint, remove_checkpoints, step_of
from aligngpt.training.loop.rejected import RejectedSamples
from aligngpt.training.loop.schedule import TrainingClock
from aligngpt.training.loop.trainer import STOPPED_FILE, StageTrainer
from aligngpt.training.origin import origin_of, other_origin
from aligngpt.training.recipe import STAGES, Recipe, RecipeError, StageName, StageRecipe
from aligngpt.training.run_card import DataFacts, write_run_card
from aligngpt.training.run_folder import check_run_folder, save_recipe
from aligngpt.training.setup.checkpointing import checkpointing_arguments
from aligngpt.training.setup.freezing import (
    compile_layers,
    freeze_all_but,
    hold_frozen_in,
    hold_trained_in_bfloat16,
    is_pretrained,
    save_pretrained_parts,
)
from aligngpt.training.setup.loading import check_rows_can_branch, decide_packing, keep_masks, load_model, pack_rows
from aligngpt.training.setup.parameter_summary import parts_of, parts_table
from aligngpt.training.setup.warm_start import warm_start
from aligngpt.training.stage import (
    DESCRIPTIONS,
    StageResult,
    claim,
    decide_precision,
    fingerprint_of,
    model_folder,
    result_folders,
    stage_folder,
    stage_result,
)


def train(recipe: Recipe, stages: Sequence[StageName] = STAGES) -> list[StageResult]:
    """Run the unfinished stages of a recipe; an interrupted stage resumes at its last checkpoint.

    Writes `pretrain/aligned.safetensors` (projector and level table), `model/` (a complete model folder) and
    `recipe.yaml` (the recipe with all defaults) under the recipe's output, and `metrics.jsonl` and `stage.json` for
    each stage. Data and earlier stages are checked before the first stage runs.

    Returns:
        The result of each stage, including those finished earlier.

    Raises:
        RecipeError: the recipe has none of the `stages`, the output holds a run of another recipe, data files are
            missing, swapped or have no levels, stage 2 is to run before stage 1 or had started from an earlier result
            of it, or its own result would replace a backbone or files of something else.
        FolderInUse: another process is training in the output folder.
        AlignGPTError: a backbone, the data or a checkpoint cannot be used.
    """
    wanted = [(name, stage) for name in STAGES if name in stages and (stage := recipe.stage(name)) is not None]
    if not wanted:
        raise RecipeError(f"the recipe has no section {' or '.join(stages)}")
    # The other processes of the launch wait for the main one and end with it, so only that one takes the lock.
    with owned_folder(recipe.output, "train") if is_main_process() else nullcontext():
        return _train(recipe, wanted)


def _train(recipe: Recipe, wanted: Sequence[tuple[StageName, StageRecipe]]) -> list[StageResult]:
    fingerprints = _check_before(recipe, wanted)
    join_processes(cpu=resolve_device().type == "cpu")
    for name, fingerprint in fingerprints.items():
        check_same(f"the settings and data files of {name}", f"fingerprint {fingerprint[:12]}")
    finished = [name for name in STAGES if stage_result(recipe, name) is not None]
    check_same(f"the finished stages in {recipe.output}", " and ".join(finished) or "none")
    if is_main_process():
        for folder in result_folders(recipe):
            # Of a job that was killed in another container; a model is too large to keep several of them.
            remove_leftovers(folder, owned=True)
    results = []
    for name, stage in wanted:
        if name == "instruct":
            check_start(recipe)
        done = stage_result(recipe, name)
        if done is None:
            done = _run_stage(recipe, name, stage, fingerprints[name])
        else:
            check_output(recipe, name)
            if is_main_process():
                # The run may have been killed after writing the result and before removing the checkpoints.
                remove_checkpoints(stage_folder(recipe, name) / "checkpoints", keep=None)
                console.print(f"{DESCRIPTIONS[name]}: already done ({done.steps} steps, loss {done.loss:.3f})")
        results.append(done)
    every = [one for name in STAGES if (one := stage_result(recipe, name)) is not None]
    if is_main_process() and stage_result(recipe, "instruct") is not None:
        write_run_card(model_folder(recipe), recipe, every)
    return results


def _check_before(recipe: Recipe, wanted: Sequence[tuple[StageName, StageRecipe]]) -> dict[StageName, str]:
    """Check everything that can be checked before the first stage runs; returns the fingerprint of each stage."""
    check_run_folder(recipe)
    unfinished = [name for name, _ in wanted if stage_result(recipe, name) is None]
    if problems := source_problems(recipe, unfinished):
        raise RecipeError("; ".join(problems))
    fingerprints = {name: fingerprint_of(recipe, name, stage) for name, stage in wanted}
    for name, fingerprint in fingerprints.items():
        done = stage_result(recipe, name)
        if done is not None and done.fingerprint != fingerprint:
            raise other_settings(recipe, name)
    if "instruct" in unfinished and "pretrain" not in fingerprints and recipe.pretrain is not None:
        check_pretrained(recipe)
    if unfinished and is_main_process():
        warnings = [swapped_warning(recipe), *(other_origin(recipe, name) for name in unfinished)]
        warnings += [without_pretraining(recipe)] if "instruct" in unfinished else []
        for warning in filter(None, warnings):
            console.print(f"warning: {warning}", highlight=False, soft_wrap=True)
    return fingerprints


def _run_stage(recipe: Recipe, name: StageName, stage: StageRecipe, fingerprint: str) -> StageResult:
    folder = stage_folder(recipe, name)
    folder.mkdir(parents=True, exist_ok=True)
    device = resolve_device()
    with main_process_first(cpu=device.type == "cpu"):
        if is_main_process():
            claim(folder, fingerprint)
        in_bfloat16 = decide_precision(stage, device, folder) == "bfloat16"
    newest = newest_checkpoint(folder / "checkpoints")
    check_same(f"the checkpoints in {folder / 'checkpoints'}", "none" if newest is None else newest.name)
    if is_main_process():
        save_recipe(recipe)
        if name == "instruct":
            note_start(recipe)
        (folder / STOPPED_FILE).unlink(missing_ok=True)
    check_sharding(stage)
    check_open_files(stage)
    reset_peak_memory(device)
    set_seed(recipe.seed)
    # All processes count the same rejects; only the main process writes them to the file.
    path_of_rejects = folder / "rejects.jsonl" if is_main_process() else None
    with Rejects(path_of_rejects, max_share=stage.max_reject_share) as rejects:
        samples = training_samples(recipe, name, rejects)
        computes_in = torch.bfloat16 if in_bfloat16 else torch.float32
        model, processor = load_model(recipe, name, weights=reads_weights(stage), bits_in=computes_in)
        if has_other_tensors(model):
            # These could not be sent.
            model, processor = load_model(recipe, name, bits_in=computes_in)
        freeze_all_but(model, stage.train, vision_blocks=stage.vision_blocks, levels_given=name == "pretrain")
        if is_main_process():
            DataFacts.of([Path(source.data) for source in stage.sources], samples).save(folder)
            console.print(f"{DESCRIPTIONS[name]}\n{parts_table(parts_of(model, stage))}", highlight=False)
            if warning := untrained_levels_warning(levels_without_samples(samples, recipe, name), recipe):
                console.print(f"warning: {warning}", highlight=False, soft_wrap=True)
        dataset = training_data(samples, recipe, name, model, processor)
        check_same(f"the usable samples of {name}.data", f"{len(samples)} samples (digest {rows_digest(dataset)[:12]})")
        if name == "instruct" and is_main_process() and (columns_of(samples).levels > 0).any():
            console.print(
                "the levels in the data are ignored: in instruction tuning the gate mixes the levels", soft_wrap=True
            )
        clock = TrainingClock(stage.minutes, stage.min_steps)
        rejected = RejectedSamples(rejects, len(samples) + rejects.count)
        # Both are decided by running the model, which some processes do not have yet.
        if packed := from_main(lambda: decide_packing(model, recipe, stage, device, computes_in)):
            pack_rows(model)
        else:
            from_main(lambda: check_rows_can_branch(model, stage))
            keep_masks(model, device)
        collator, budget = collators_of(stage, processor.tokenizer.pad_token_id, device, packed=packed)
        validation = validation_of(recipe, name, dataset, collator, budget)
        held_low = in_bfloat16 and hold_frozen_in(model, torch.bfloat16)
        if stage.weight_precision == "bfloat16":
            hold_trained_in_bfloat16(model)
        cached = None
        if stage.cache_features:
            cache = from_main(lambda: features_kept_for(dataset, model, device, in_bfloat16=in_bfloat16))
            dataset.known_features = cache
            cached = partial(cache.features_of, model, in_bfloat16=in_bfloat16)
        # The others take the weights from the main process, as soon as the model is sharded or wrapped.
        if stage.warm_start is not None and is_main_process() and newest_checkpoint(folder / "checkpoints") is None:
            if stage.sharding == "none":
                # A sharded model may be too large for one device.
                model.to(device)
            moved = warm_start(model, dataset, stage.warm_start, seed=recipe.seed, cached=cached)
            with atomic_write(folder / "warm_start.json") as file:
                json.dump(moved._asdict(), file)
        arguments = _arguments(recipe, stage, device, folder, in_bfloat16=in_bfloat16)
        if stage.sharding != "none":
            _share_out(model, stage, arguments.device, in_bfloat16=in_bfloat16)
        if stage.compile:
            compile_layers(model)
        try:
            callback = StageCallback(DESCRIPTIONS[name], stage, clock, folder / "metrics.jsonl", validation)
            trainer = StageTrainer(
                stage,
                clock,
                rejected,
                budget=budget,
                model=model,
                args=arguments,
                train_dataset=dataset,
                data_collator=collator.with_ids,
                callbacks=[callback],
            )
            callback.trainer = trainer
        except (ValueError, RuntimeError, ImportError) as error:
            if not recipe.report_to:
                raise
            raise RecipeError(f"report_to {', '.join(recipe.report_to)} cannot be used: {error}") from error
        _train_from_checkpoint(trainer, callback, folder)
        steps = trainer.state.global_step
        result = StageResult(
            stage=name,
            fingerprint=fingerprint,
            steps=steps,
            samples=round(trainer.rows_seen * len(samples) / len(dataset)),
            seconds=round(clock.seconds, 1),
            peak_memory=peak_memory(),
            peak_device_memory=peak_device_memory(arguments.device),
            loss=_last_loss(folder / "metrics.jsonl"),
            rejects=rejects.count,
        )
    # If the frozen weights are held in lower precision than their source, or sharded, they are read again.
    as_it_is = name == "instruct" and stage.lora is None and not trainer.is_sharded and not held_low
    # Gathering sharded tensors takes all processes.
    tensors = (
        {}
        if as_it_is
        else whole_tensors(model, lambda key, one: is_pretrained(key) if name == "pretrain" else one.requires_grad)
    )
    if is_main_process():
        if name == "pretrain":
            save_pretrained_parts(tensors, folder, origin_of(recipe))
        else:
            export_model(recipe, model if as_it_is else None, processor, tensors)
        with atomic_write(folder / "stage.json") as file:
            json.dump(asdict(result), file, indent=2)
        remove_checkpoints(folder / "checkpoints", keep=None)
    trainer.accelerator.wait_for_everyone()
    return result


def _share_out(
    model: AlignGPTForConditionalGeneration, stage: StageRecipe, device: torch.device, *, in_bfloat16: bool
) -> None:
    if processes() == 1:
        console.print(
            f"sharding {stage.sharding}: there is only one process, so nothing is sharded; start several with "
            "torchrun --nproc_per_node N $(which aligngpt) train …",
            highlight=False,
            soft_wrap=True,
        )
        return
    shard(model, stage.sharding, device, in_bfloat16=in_bfloat16)
    line = sharding_line(model)
    if is_main_process():
        console.print(line, highlight=False, soft_wrap=True)


def _arguments(
    recipe: Recipe, stage: StageRecipe, device: torch.device, folder: Path, *, in_bfloat16: bool
) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=rows_per_batch(stage, processes()),
        num_train_epochs=stage.epochs,
        max_steps=stage.max_steps or -1,
        max_grad_norm=stage.max_grad_norm or 0.0,  # Zero only measures.
        **checkpointing_arguments(stage),
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
    one_device(arguments)
    arguments.gradient_accumulation_steps = _accumulation(stage, arguments.world_size)
    return arguments


def one_device(arguments: TrainingArguments) -> None:
    """Make a process train on one device, and print how to use several.

    transformers would split each batch over all GPUs that a process sees, texts and images separately, so that they
    would no longer match.
    """
    if arguments.n_gpu > 1:
        console.print(
            f"found {arguments.n_gpu} GPUs, training on one; to use all, start one process per GPU: torchrun "
            f"--nproc_per_node {arguments.n_gpu} $(which aligngpt) train …",
            highlight=False,
            soft_wrap=True,
        )
        arguments._n_gpu = 1


def _train_from_checkpoint(trainer: StageTrainer, callback: StageCallback, folder: Path) -> None:
    """Train to the end, from the newest complete checkpoint if there is one."""
    checkpoints = folder / "checkpoints"
    newest = newest_checkpoint(checkpoints, verify=True)
    remove_checkpoints(checkpoints, keep=newest)
    step = 0
    if newest is not None:
        trainer.clock.before = checkpoint_seconds(newest)
        trainer.rejected.resume(newest)
        callback.resumed_from = newest
        step = step_of(newest)
        if is_main_process():
            console.print(f"resuming at step {step}")
    if is_main_process():
        forget_metrics_after(folder / "metrics.jsonl", step)
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


def _accumulation(stage: StageRecipe, devices: int) -> int:
    if stage.batch_size % devices:
        raise RecipeError(
            f"batch_size {stage.batch_size} is not a multiple of {devices}, the number of devices; change it so that "
            "each gets as many rows of a step"
        )
    own, rows = stage.batch_size // devices, rows_per_batch(stage, devices)
    if own % rows:
        raise RecipeError(
            f"batch_size {stage.batch_size} is {own} rows on each of {devices} devices, not a multiple of "
            f"micro_batch_size {rows}; set the latter to a divisor of {own}"
        )
    return own // rows


def _last_loss(metrics: Path) -> float:
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    losses = [figures["loss"] for line in lines if "loss" in (figures := json.loads(line))][-5:]
    return sum(losses) / len(losses) if losses else float("nan")
