"""transformers' Trainer for one stage: learning rates per part, a time budget and atomic checkpoints."""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from aligngpt.data.batches.budget import MICRO_BATCHES, StepCollator, TokenBudget, fill_up
from aligngpt.data.batches.dataset import ConversationDataset, row_lengths, rows_digest
from aligngpt.data.batches.layouts import WithLayout
from aligngpt.data.rejects import Rejected
from aligngpt.data.samples.columns import columns_of
from aligngpt.endings import is_disk_full
from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.training.distributed.fsdp import (
    gradients_later,
    has_shards,
    is_sharded,
    load_shards,
    load_whole_optimizer,
    load_whole_tensors,
    save_shards,
)
from aligngpt.training.distributed.processes import add_up, gather, is_main_process, largest
from aligngpt.training.feed.collators import rows_per_batch
from aligngpt.training.feed.feature_cache import FeatureCache
from aligngpt.training.feed.sampler import BalancedSampler, shares_of
from aligngpt.training.feed.windowed_shuffle import Blocks
from aligngpt.training.flops import ModelFlops, peak_of_device
from aligngpt.training.loop.checkpoints import mark_complete, remove_checkpoints
from aligngpt.training.loop.loss_watch import LossWatch, StepLosses
from aligngpt.training.loop.metrics import StepMetrics
from aligngpt.training.loop.optimizers import make_optimizer
from aligngpt.training.loop.rejected import RejectedSamples
from aligngpt.training.loop.schedule import TrainingClock, learning_rate_factor
from aligngpt.training.recipe import StageRecipe
from aligngpt.training.setup.freezing import trained_tensors
from aligngpt.training.setup.pretrained_parts import load_tensors

WEIGHTS_FILE = "trained.safetensors"
FIGURES_FILE = "figures.json"
STOPPED_FILE = "stopped.json"
LOGS_WITHOUT_GRADIENT = 3


class TrainingStopped(AlignGPTError):
    """A loss was NaN or infinite, or nothing was learned.

    Attributes:
        reason: what was found, and after which step.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason


class StageTrainer(Trainer):
    """The Trainer of one stage.

    A checkpoint holds the trainable parameters, not the frozen ones, and is marked complete once everything in it has
    been written; only then are older ones removed.

    Args:
        stage: the stage's settings.
        clock: the stage's training time, which controls the learning rate and the checkpoints.
        rejected: counts the samples found to be unusable.
        budget: divides each step into micro-batches by tokens; None if they have a number of rows.
        **kwargs: see `transformers.Trainer`.
    """

    def __init__(
        self,
        stage: StageRecipe,
        clock: TrainingClock,
        rejected: RejectedSamples,
        *,
        budget: TokenBudget | None = None,
        **kwargs: Any,
    ) -> None:
        self.stage = stage
        self.clock = clock
        self.rejected = rejected
        self.optimizer: torch.optim.Optimizer | None
        self.lr_scheduler: LambdaLR | None
        self.data_collator: Any
        super().__init__(**kwargs)
        self.remove_callback(PrinterCallback)
        self.is_sharded = is_sharded(self.model)
        unwrapped = self.accelerator.unwrap_model(self.model)
        self.data_collator = WithLayout(self.data_collator, unwrapped.config)
        if budget is not None:
            self.data_collator = StepCollator(self.data_collator, budget)
        self.metrics = StepMetrics(
            unwrapped.config,
            lambda sums: add_up(sums, self.args.device),
            flops=ModelFlops.of(unwrapped),
            peak=peak_of_device(self.args.device, in_bfloat16=self.args.bf16),
        )
        self._without_gradient = 0
        self._rows_per_epoch = 0
        self._losses = LossWatch()

    @property
    def _folder(self) -> Path:
        return Path(self.args.output_dir or ".")

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As in the Trainer; the time it takes counts as waiting for data."""
        started = time.monotonic()
        batches = super().get_batch_samples(*args, **kwargs)
        self.metrics.wait(time.monotonic() - started)
        for batch in batches[0]:
            if (parts := batch.get(MICRO_BATCHES)) is not None:
                batch[MICRO_BATCHES] = fill_up(parts, largest(len(parts)))
        return batches

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        return super()._get_num_items_in_batch([one for batch in batch_samples for one in _parts(batch)], device)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in the Trainer; of a step that is one batch of several micro-batches, all of them."""
        *others, last = _parts(inputs)
        losses = []
        for part in others:
            with gradients_later(model) if self.is_sharded else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        losses.append(super().training_step(model, last, num_items_in_batch))
        return torch.stack(losses).sum()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As in the Trainer."""
        return sum(super(StageTrainer, self).floating_point_ops(part) for part in _parts(inputs))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As in the Trainer; also updates the metrics and notes the loss, for `agree`."""
        ids = inputs.pop("sample_ids", [])
        self.rejected.see(Rejected(*one) for one in inputs.pop("rejected", []))
        inputs = self._with_kept_features(inputs)
        loss, output = super().compute_loss(model, inputs, True, num_items_in_batch)
        self._losses.see(loss, ids)
        with torch.no_grad():
            self.metrics.update(inputs, output)
        return (loss, output) if return_outputs else loss

    def of_main(self, value: float) -> float:
        """The value in the main process; every process must call it."""
        shared = torch.tensor([value if is_main_process() else 0.0], dtype=torch.float64)
        return float(add_up(shared, self.args.device))

    def agree(self) -> None:
        """Synchronise the processes after a step: the training time, the rejected samples, and losses not finite.

        On a GPU, the losses are those of the step before, see `LossWatch`.

        Raises:
            TrainingStopped: a loss was NaN or infinite; in all processes. The samples are then named in `stopped.json`.
            TooManyRejects: in all processes.
        """
        self._losses.end_step(self.state.global_step - 1)
        losses = self._losses.next() or StepLosses(self.state.global_step - 1, [])
        shared = torch.tensor([self.clock.share(), self.rejected.pending, len(losses.bad)], dtype=torch.float64)
        seconds, pending, bad = add_up(shared, self.args.device).tolist()
        self.clock.agreed = seconds
        if bad:
            self._stop_at(losses)
        if pending:
            self.rejected.settle()

    def check_losses(self) -> None:
        """Look at the losses that `agree` has not looked at yet, before anything is made of them.

        Raises:
            TrainingStopped: a loss was NaN or infinite, as for `agree`; every process must call it.
        """
        for losses in self._losses.rest():
            if add_up(torch.tensor([len(losses.bad)], dtype=torch.float64), self.args.device).item():
                self._stop_at(losses)

    def _stop_at(self, losses: StepLosses) -> None:
        found = gather([tuple(bad) for bad in losses.bad])
        self._stop(f"the loss is {found[0][0]}", [id for _, ids in found for id in ids], losses.step)

    def _with_kept_features(self, inputs: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(self.train_dataset, ConversationDataset)
        cache = self.train_dataset.known_features
        if not isinstance(cache, FeatureCache):
            return inputs
        model = self.accelerator.unwrap_model(self.model)
        return cache.complete(model, inputs, in_bfloat16=self.args.bf16)

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As in the Trainer, with the metrics since the last call.

        Raises:
            TrainingStopped: all gradients were zero several times in a row, or a loss was NaN or infinite.
        """
        if "loss" in logs:
            self.check_losses()
            logs |= self.metrics.compute()
            self._without_gradient = self._without_gradient + 1 if logs.get("grad_norm") == 0 else 0
            if self._without_gradient == LOGS_WITHOUT_GRADIENT:
                self._stop(
                    f"all gradients were zero {LOGS_WITHOUT_GRADIENT} times in a row", [], self.state.global_step
                )
        super().log(logs, *args, **kwargs)

    def _stop(self, what: str, ids: list[str], step: int) -> None:
        """End training in this process; all processes must call it, and the main one writes the file."""
        path = self._folder.parent / STOPPED_FILE
        if is_main_process():
            with atomic_write(path) as file:
                json.dump({"step": step, "what": what, "samples": ids}, file, indent=2)
        raise TrainingStopped(
            f"{what} after step {step}",
            f"the samples are listed in {path}. Lower the learning rate or correct the data, remove {path.parent} and "
            "run the command again",
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The stage's optimiser, with one parameter group per learning rate."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.accelerator.unwrap_model(self.model), self.stage)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """The recipe's schedule over the steps, or over the time budget if that runs out first."""
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.create_optimizer(), self._factor(num_training_steps))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _factor(self, steps: int) -> Callable[[int], float]:
        stage, clock = self.stage, self.clock
        # The learning rate of the first step of a warm-up is zero: a single step would train nothing.
        warmup = stage.warmup_ratio if steps > 1 else 0.0
        return lambda step: learning_rate_factor(stage.schedule, warmup, clock.progress(step, steps))

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        assert isinstance(dataset, ConversationDataset)
        columns = columns_of(dataset.samples)
        micro_batch = rows_per_batch(self.stage, self.args.world_size)
        sampler = BalancedSampler(
            row_lengths(dataset),
            micro_batch,
            self.stage.batch_size // micro_batch,
            self.args.seed,
            shares_of(dataset.samples, dataset.rows, [source.weight for source in self.stage.sources]),
            grouped=self.stage.group_by_length,
            with_images=columns.images[dataset.rows.first] > 0 if self.stage.group_by_modality else None,
            shuffled=self.stage.shuffle,
            processes=self.args.world_size,
            blocks=Blocks.of(columns, dataset.rows),
        )
        self._rows_per_epoch = sampler.rows
        return sampler

    @property
    def rows_seen(self) -> int:
        """Number of rows trained on so far; the last step of an epoch may have fewer than the others."""
        whole, part = divmod(self.state.epoch or 0.0, 1.0)
        in_whole_epochs = round(whole) * self._rows_per_epoch
        return min(self.state.global_step * self.stage.batch_size, in_whole_epochs + round(part * self._rows_per_epoch))

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager[None]:
        return gradients_later(self.model)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir) if output_dir is not None else self._folder
        if not self.args.should_save or self.is_sharded:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_tensors(self.accelerator.unwrap_model(self.model)), folder / WEIGHTS_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        if has_shards(folder):
            return
        if self.is_sharded:
            load_whole_tensors(self.model, folder / WEIGHTS_FILE)
            return
        load_tensors(folder / WEIGHTS_FILE, _trained(self.accelerator.unwrap_model(self.model)))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.lr_scheduler is not None
        save_shards(self.model, _inner(self.optimizer), Path(output_dir))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not (self.is_sharded or has_shards(Path(checkpoint))):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.lr_scheduler is not None
        if has_shards(Path(checkpoint)):
            load_shards(self.model, _inner(self.optimizer), Path(checkpoint))
        else:
            load_whole_optimizer(_inner(self.optimizer), Path(checkpoint) / OPTIMIZER_NAME)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.check_losses()
        folder = self._folder / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            self._save_figures(folder)
            # Every process writes the state of its own random number generators.
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                mark_complete(folder, self.clock.seconds)
                remove_checkpoints(self._folder, keep=folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch and safetensors raise their own errors if the disk is full.
            shutil.rmtree(folder, ignore_errors=True)
            advice = "make room and run" if is_disk_full(error) else "run"
            raise AlignGPTError(
                f"the checkpoint {folder} cannot be written: {error}. The previous one is intact: {advice} the same "
                "command again"
            ) from error
        # Marking reads the whole checkpoint. In the next step, groups of a sharded model would not wait that long.
        self.accelerator.wait_for_everyone()

    def _save_figures(self, checkpoint: Path) -> None:
        """Save the partial sums of the next metrics line, so that a resumed run writes the same line."""
        loss = add_up(self._tr_loss.cpu().double().reshape(1), self.args.device) / self.args.world_size
        clock = self.clock
        assert isinstance(self.train_dataset, ConversationDataset)
        figures = {
            "loss": loss.item(),
            "logged": self._globalstep_last_logged,
            "sums": self.metrics.state(),
            "round": [clock.round, clock.began_step, clock.began_seconds],
            "rows": rows_digest(self.train_dataset),
        }
        if self.is_world_process_zero():
            self.rejected.save(checkpoint)
            with atomic_write(checkpoint / FIGURES_FILE) as file:
                json.dump(figures, file)

    def resume_figures(self, checkpoint: Path) -> None:
        """Restore the sums that `_save_figures` saved; called when training begins.

        Raises:
            AlignGPTError: the checkpoint's file is damaged, or the data gives other samples than when it was written.
        """
        path = checkpoint / FIGURES_FILE
        if not path.is_file():
            return
        try:
            figures = json.loads(path.read_text(encoding="utf-8"))
            loss, logged, sums = float(figures["loss"]), int(figures["logged"]), [float(one) for one in figures["sums"]]
            number, step, seconds = figures["round"]
            rows = figures.get("rows")
        except (ValueError, TypeError, KeyError) as error:
            raise AlignGPTError(
                f"{path} is damaged ({error}); remove {checkpoint.parent} to restart the stage"
            ) from error
        assert isinstance(self.train_dataset, ConversationDataset)
        if rows is not None and rows != rows_digest(self.train_dataset):
            # Its next samples would be others: some would be read twice and some never.
            raise AlignGPTError(
                f"the data gives other samples than when {checkpoint} was written, although its files are the same: "
                "images that were missing may be there now, which changes the order of all samples. Remove "
                f"{checkpoint.parent} to restart the stage with the samples as they are"
            )
        self.clock.round, self.clock.began_step, self.clock.began_seconds = int(number), int(step), float(seconds)
        # The logged loss is averaged over processes, so each gets the mean; the sums are added up, so one gets them.
        self._tr_loss += loss
        self._globalstep_last_logged = logged
        if self.is_world_process_zero():
            self.metrics.resume(sums)


def _parts(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The micro-batches of a batch of the data loader."""
    parts: list[dict[str, Any]] = batch.get(MICRO_BATCHES, [batch])
    return parts


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside accelerate's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
