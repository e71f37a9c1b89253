"""The settings of transformers' trainer that follow from a stage and from the number of devices."""

from pathlib import Path

import torch
from transformers import TrainingArguments

from aligngpt.progress import say
from aligngpt.training.distributed.processes import launched, processes
from aligngpt.training.feed.collators import rows_per_batch
from aligngpt.training.recipe import Recipe, RecipeError, StageRecipe
from aligngpt.training.setup.checkpointing import checkpointing_arguments


def arguments_of(
    recipe: Recipe, stage: StageRecipe, checkpoints: Path, device: torch.device, *, in_bfloat16: bool
) -> TrainingArguments:
    """The trainer's settings for a stage, for as many processes as were launched.

    Args:
        recipe, stage: the recipe and the stage's section.
        checkpoints: folder of the stage's checkpoints.
        device: of this process.
        in_bfloat16: the stage computes in bfloat16, else in float32.

    Raises:
        RecipeError: the rows of a step cannot be divided evenly among the devices and micro-batches.
    """
    on_cpu = device.type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=rows_per_batch(stage, processes()),
        num_train_epochs=stage.epochs,
        max_steps=stage.max_steps or -1,
        max_grad_norm=stage.max_grad_norm or 0.0,  # Zero only measures.
        **checkpointing_arguments(stage),
        logging_steps=stage.log_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        bf16=in_bfloat16,
        use_cpu=on_cpu,
        seed=recipe.seed,
        data_seed=recipe.seed,
        dataloader_num_workers=stage.workers,
        remove_unused_columns=False,
        ddp_backend="gloo" if on_cpu and launched() else None,
        report_to=recipe.report_to or "none",
        disable_tqdm=True,
    )
    one_device(arguments)
    arguments.gradient_accumulation_steps = accumulation_steps(stage, arguments.world_size)
    return arguments


def one_device(arguments: TrainingArguments) -> None:
    """Make a process train on one device, and print how to use several.

    transformers would split each batch over all GPUs that a process sees, texts and images separately, so that they
    would no longer match.
    """
    if arguments.n_gpu > 1:
        say(
            f"found {arguments.n_gpu} GPUs, training on one; to use all, start one process per GPU: torchrun "
            f"--nproc_per_node {arguments.n_gpu} $(which aligngpt) train …"
        )
        arguments._n_gpu = 1


def accumulation_steps(stage: StageRecipe, devices: int) -> int:
    """Number of batches of the data loader that a device reads for each optimiser step.

    Raises:
        RecipeError: the rows of a step cannot be divided evenly among the devices and micro-batches.
    """
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
