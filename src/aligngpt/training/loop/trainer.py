"""transformers' Trainer for one stage: learning rates by part, a time budget, checkpoints that are whole or absent."""

import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from aligngpt.data.batches.dataset import ConversationDataset, row_lengths
from aligngpt.data.rejects import Rejected
from aligngpt.data.samples.columns import columns_of
from aligngpt.endings import is_disk_full
from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.progress import Meter, console
from aligngpt.training.distributed.fsdp import (
    gradients_later,
    has_shards,
    is_sharded,
    load_shards,
    load_whole_optimizer,
    load_whole_tensors,
    save_shards,
)
from aligngpt.training.distributed.processes import add_up, is_main_process
from aligngpt.training.feed.feature_cache import FeatureCache
from aligngpt.training.feed.sampler import BalancedSampler, shares_of
from aligngpt.training.feed.windowed_shuffle import Blocks
from aligngpt.training.loop.checkpoints import mark_complete, remove_checkpoints
from aligngpt.training.loop.metrics import StepMetrics
from aligngpt.training.loop.optimizers import make_optimizer
from aligngpt.training.loop.rejected import RejectedSamples
from aligngpt.training.loop.validation import Validation
from aligngpt.training.recipe import StageRecipe
from aligngpt.training.setup.freezing import load_tensors, trained_tensors

WEIGHTS_FILE = "trained.safetensors"
FIGURES_FILE = "figures.json"
STOPPED_FILE = "stopped.json"
LOGS_WITHOUT_GRADIENT = 3
STEPS_TO_JUDGE, LATE = 5, 1.2
"""Steps after which the time they take is known, and what a stage may last beyond the time asked for unsaid."""


@dataclass
class TrainingClock:
    """Training time over all the runs of a stage, and how far through the stage it is.

    Attributes:
        minutes: the time budget of a round of the schedule, None without one.
        min_steps: what a round takes at least, however long that lasts.
        round: the number of the schedule's round, from 1.
        began_step, began_seconds: where the round began.
        before: seconds of training in earlier runs.
        agreed: seconds of training at the last step, the same for all processes; what is decided by time follows it.
    """

    minutes: float | None = None
    min_steps: int | None = None
    round: int = 1
    began_step: int = 0
    began_seconds: float = 0.0
    before: float = 0.0
    started: float = field(default_factory=time.monotonic)
    agreed: float = 0.0

    def start(self) -> None:
        """Begin counting this run."""
        self.started = time.monotonic()
        self.agreed = self.before

    def share(self) -> float:
        """What this process adds to the time that all agree on: the main process's time, and nothing of the others."""
        return self.seconds if is_main_process() else 0.0

    @property
    def seconds(self) -> float:
        """Training time so far, in seconds."""
        return self.before + time.monotonic() - self.started

    def progress(self, step: int, steps: int) -> float:
        """0…1: the share of the steps done, or of the round's time used where that is further on."""
        of_steps = step / steps
        if not self.minutes:
            return min(1.0, of_steps)
        of_round = (self.agreed - self.began_seconds) / (60 * self.minutes)
        if self.min_steps:
            of_round = min(of_round, (step - self.began_step) / self.min_steps)
        return min(1.0, max(of_steps, of_round))

    def next_round(self, step: int) -> None:
        """Begin another round of the schedule after `step`."""
        self.round += 1
        self.began_step, self.began_seconds = step, self.agreed

    def late(self, step: int, first: int) -> float | None:
        """Seconds that the round's steps will take, where that is clearly more than the time asked for.

        Args:
            step: the steps done.
            first: the steps done when this process began.
        """
        if not self.minutes or not self.min_steps or step == first:
            return None
        a_step = (self.agreed - self.before) / (step - first)
        seconds = self.agreed - self.began_seconds + a_step * (self.min_steps - (step - self.began_step))
        return seconds if seconds > LATE * 60 * self.minutes else None


def learning_rate_factor(schedule: str, warmup_ratio: float, progress: float) -> float:
    """What the peak learning rate is multiplied with at `progress` 0…1 of the run."""
    if progress < warmup_ratio:
        return progress / warmup_ratio
    rest = (progress - warmup_ratio) / (1 - warmup_ratio)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    return 1 - rest if schedule == "linear" else 1.0


class StageTrainer(Trainer):
    """The Trainer of one stage.

    A checkpoint holds the parameters that train, not the frozen ones, and is marked complete once everything in it was
    written; only then are older ones removed.

    Args:
        stage: the stage's settings.
        clock: the stage's training time, which the learning rate and the checkpoints follow.
        rejected: counts the samples that turn out to be of no use.
        **kwargs: see `transformers.Trainer`.
    """

    def __init__(self, stage: StageRecipe, clock: TrainingClock, rejected: RejectedSamples, **kwargs: Any) -> None:
        self.stage = stage
        self.clock = clock
        self.rejected = rejected
        self.optimizer: torch.optim.Optimizer | None
        self.lr_scheduler: LambdaLR | None
        super().__init__(**kwargs)
        self.remove_callback(PrinterCallback)
        self.is_sharded = is_sharded(self.model)
        self.metrics = StepMetrics(
            self.accelerator.unwrap_model(self.model).config, lambda sums: add_up(sums, self.args.device)
        )
        self._without_gradient = 0

    @property
    def _folder(self) -> Path:
        return Path(self.args.output_dir or ".")

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the time it takes is time without data."""
        started = time.monotonic()
        batches = super().get_batch_samples(*args, **kwargs)
        self.metrics.wait(time.monotonic() - started)
        return batches

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As the Trainer's, and a look at what came out.

        Raises:
            AlignGPTError: the loss is not a number any more; the samples are then named in `stopped.json`.
        """
        ids = inputs.pop("sample_ids", [])
        self.rejected.see(Rejected(*one) for one in inputs.pop("rejected", []))
        inputs = self._with_kept_features(inputs)
        loss, output = super().compute_loss(model, inputs, True, num_items_in_batch)
        if not torch.isfinite(loss):
            self._stop(f"the loss is {loss.item()}", ids)
        with torch.no_grad():
            self.metrics.update(inputs, output)
        return (loss, output) if return_outputs else loss

    def of_main(self, value: float) -> float:
        """The value that the main process has; every process calls it at the same time."""
        shared = torch.tensor([value if is_main_process() else 0.0], dtype=torch.float64)
        return float(add_up(shared, self.args.device))

    def agree(self) -> None:
        """What all processes must know the same of after a step: the time, and the samples that were rejected.

        Raises:
            TooManyRejects: in all processes alike.
        """
        shared = torch.tensor([self.clock.share(), self.rejected.pending], dtype=torch.float64)
        seconds, pending = add_up(shared, self.args.device).tolist()
        self.clock.agreed = seconds
        if pending:
            self.rejected.settle()

    def _with_kept_features(self, inputs: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(self.train_dataset, ConversationDataset)
        cache = self.train_dataset.known_features
        if not isinstance(cache, FeatureCache):
            return inputs
        model = self.accelerator.unwrap_model(self.model)
        return cache.complete(model, inputs, in_bfloat16=self.args.bf16)

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, with what was seen since the last time.

        Raises:
            AlignGPTError: several times in a row nothing was learnt from.
        """
        if "loss" in logs:
            logs |= self.metrics.compute()
            self._without_gradient = self._without_gradient + 1 if logs.get("grad_norm") == 0 else 0
            if self._without_gradient == LOGS_WITHOUT_GRADIENT:
                self._stop(f"all gradients were zero {LOGS_WITHOUT_GRADIENT} times in a row", [])
        super().log(logs, *args, **kwargs)

    def _stop(self, what: str, ids: list[str]) -> None:
        step = self.state.global_step
        path = self._folder.parent / STOPPED_FILE
        with atomic_write(path) as file:
            json.dump({"step": step, "what": what, "samples": ids}, file, indent=2)
        raise AlignGPTError(
            f"{what} after step {step}; the samples are in {path}. Lower the learning rate or look at the data, then "
            "run the same command again"
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The stage's optimiser, with a group of parameters for each learning rate."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.accelerator.unwrap_model(self.model), self.stage)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """The recipe's schedule over the steps, or over the time budget where that runs out first."""
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.create_optimizer(), self._factor(num_training_steps))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _factor(self, steps: int) -> Callable[[int], float]:
        stage, clock = self.stage, self.clock
        return lambda step: learning_rate_factor(stage.schedule, stage.warmup_ratio, clock.progress(step, steps))

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        assert isinstance(dataset, ConversationDataset)
        micro_batch = self.stage.micro_batch_size or self.stage.batch_size
        return BalancedSampler(
            row_lengths(dataset),
            micro_batch,
            self.stage.batch_size // micro_batch,
            self.args.seed,
            shares_of(dataset.samples, dataset.rows, [source.weight for source in self.stage.sources]),
            grouped=self.stage.group_by_length,
            processes=self.args.world_size,
            blocks=Blocks.of(columns_of(dataset.samples), dataset.rows),
        )

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
        folder = self._folder / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            self._save_figures(folder)
            # Every process writes the state of its own random numbers.
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                mark_complete(folder, self.clock.seconds)
                remove_checkpoints(self._folder, keep=folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch and safetensors have errors of their own for a disk that is full.
            shutil.rmtree(folder, ignore_errors=True)
            advice = "make room and run" if is_disk_full(error) else "run"
            raise AlignGPTError(
                f"the checkpoint {folder} cannot be written: {error}. The one before it is intact: {advice} the same "
                "command again"
            ) from error

    def _save_figures(self, checkpoint: Path) -> None:
        """Keep what the next line of the metrics is made of, so that a resumed run writes the line it would have."""
        loss = add_up(self._tr_loss.double().reshape(1).cpu(), self.args.device) / self.args.world_size
        clock = self.clock
        figures = {
            "loss": loss.item(),
            "logged": self._globalstep_last_logged,
            "sums": self.metrics.state(),
            "round": [clock.round, clock.began_step, clock.began_seconds],
        }
        if self.is_world_process_zero():
            self.rejected.save(checkpoint)
            with atomic_write(checkpoint / FIGURES_FILE) as file:
                json.dump(figures, file)

    def resume_figures(self, checkpoint: Path) -> None:
        """Take what `_save_figures` kept; called when training begins.

        Raises:
            AlignGPTError: the checkpoint's file is damaged.
        """
        path = checkpoint / FIGURES_FILE
        if not path.is_file():
            return
        try:
            figures = json.loads(path.read_text(encoding="utf-8"))
            loss, logged, sums = float(figures["loss"]), int(figures["logged"]), [float(one) for one in figures["sums"]]
            number, step, seconds = figures["round"]
        except (ValueError, TypeError, KeyError) as error:
            raise AlignGPTError(
                f"{path} is damaged ({error}); remove {checkpoint.parent} to begin the stage anew"
            ) from error
        self.clock.round, self.clock.began_step, self.clock.began_seconds = int(number), int(step), float(seconds)
        # The logged loss is the mean over the processes, so each has the mean; the sums are added up, so one has them.
        self._tr_loss += loss
        self._globalstep_last_logged = logged
        if self.is_world_process_zero():
            self.metrics.resume(sums)


class StageCallback(TrainerCallback):
    """Progress, metrics, the time between checkpoints and the end of the time budget.

    Args:
        description: what the progress line says is being done.
        stage: the stage's settings.
        clock: the stage's training time.
        metrics: JSON lines file that each logged step is appended to.
        validation: what is measured every `stage.validation.minutes` and at the end.

    Attributes:
        trainer: whose steps these are; known once it was made.
        resumed_from: the checkpoint that training starts from; None from the beginning.
    """

    trainer: StageTrainer
    resumed_from: Path | None = None

    def __init__(
        self,
        description: str,
        stage: StageRecipe,
        clock: TrainingClock,
        metrics: Path,
        validation: Validation | None = None,
    ) -> None:
        self.description, self.stage, self.clock, self.metrics = description, stage, clock, metrics
        self.validation = validation
        self.validated_at = 0.0
        self.meter: Meter | None = None
        self.remark = ""
        self.saved_at = 0.0
        self.first_step = 0
        self.accuracy = 0.0

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the progress bar and the clock."""
        if self.resumed_from is not None:
            self.trainer.resume_figures(self.resumed_from)
        self.clock.start()
        self.first_step = state.global_step
        self.saved_at = self.validated_at = self.clock.agreed
        if state.is_world_process_zero:
            self.meter = Meter(self.description, state.max_steps, initial=state.global_step, unit="steps")
            self.meter.__enter__()

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step; ask for a checkpoint, a line of metrics or the end where it is time."""
        self.trainer.agree()
        progress = self.clock.progress(state.global_step, state.max_steps)
        self._say_when_late(state)
        self._validate(state, kwargs["model"], in_bfloat16=args.bf16, ends=progress >= 1)
        if progress >= 1 and self._wants_another_round(state):
            self.clock.next_round(state.global_step)
            progress = self.clock.progress(state.global_step, state.max_steps)
        if self.meter is not None and progress > 0:
            self.meter.total = max(state.global_step, round(state.global_step / progress))
            self.meter.advance(remark=self.remark)
        if progress >= 1:
            control.should_training_stop = True
            control.should_log = True
        elif self.clock.agreed - self.saved_at >= 60 * self.stage.checkpoint_minutes:
            # Never of the last step: a run that resumes there would have no step left, and take one more.
            control.should_save = True

    def _say_when_late(self, state: Any) -> None:
        if state.global_step - self.first_step != STEPS_TO_JUDGE or not state.is_world_process_zero:
            return
        if (seconds := self.clock.late(state.global_step, self.first_step)) is not None:
            console.print(
                f"this machine is slow, or busy: the {self.clock.min_steps} steps of this stage will take about "
                f"{seconds / 60:.0f} minutes, not {self.clock.minutes:g}",
                highlight=False,
                soft_wrap=True,
            )

    def _wants_another_round(self, state: Any) -> bool:
        """Whether too little was learnt, and there is a round left; the same in every process."""
        settings = self.stage.validation
        if settings is None or settings.until_accuracy is None or state.global_step >= state.max_steps:
            return False
        # Where the model is not shared out, the main process alone has looked.
        accuracy = self.trainer.of_main(self.accuracy)
        if accuracy >= settings.until_accuracy:
            return False
        more = self.clock.round < settings.rounds
        if state.is_world_process_zero:
            console.print(
                f"{accuracy:.1%} of the validation answers are right, {settings.until_accuracy:.0%} are wanted: "
                + (
                    f"training goes on with round {self.clock.round + 1} of at most {settings.rounds}"
                    if more
                    else f"training ends all the same after {self.clock.round} rounds"
                ),
                highlight=False,
                soft_wrap=True,
            )
        return more

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """The time to the next checkpoint begins when this one is written."""
        self.saved_at = self.clock.agreed

    def on_log(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Append the logged figures to the metrics file."""
        logs = kwargs["logs"]
        if "loss" not in logs:
            return
        self.remark = f"loss {logs['loss']:.3f} {logs['tokens_per_second']:,.0f} tokens/s"
        self._write(state, {name: value for name, value in logs.items() if name != "epoch"})

    def _validate(self, state: Any, model: Any, *, in_bfloat16: bool, ends: bool) -> None:
        if self.validation is None or self.stage.validation is None:
            return
        # Of a model that is shared out every process has a part, and takes part.
        if not (state.is_world_process_zero or is_sharded(model)):
            return
        if ends or self.clock.agreed - self.validated_at >= 60 * self.stage.validation.minutes:
            measured = self.validation.measure(model, in_bfloat16=in_bfloat16)
            losses = {f"validation_loss_{name}": loss for name, loss in measured.losses.items()}
            figures = {"validation_loss": measured.loss, "validation_accuracy": measured.accuracy}
            self._write(state, figures | losses)
            self.accuracy = measured.accuracy
            self.validated_at = self.clock.agreed

    def _write(self, state: Any, figures: dict[str, float]) -> None:
        if state.is_world_process_zero:
            line = {"step": state.global_step, "epoch": state.epoch, "seconds": round(self.clock.seconds, 2)}
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | figures) + "\n")

    def close(self, error: BaseException | None = None) -> None:
        """End the progress bar."""
        if self.meter is not None:
            self.meter.__exit__(type(error) if error else None)
            self.meter = None


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser within what accelerate makes of it."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def forget_metrics_after(metrics: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again, and a line that a kill cut short."""
    if not metrics.is_file():
        return
    kept = []
    # A kill may have cut the last line anywhere, within a character too.
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if int(json.loads(line)["step"]) <= step:
                kept.append(line)
        except (ValueError, TypeError, KeyError):
            continue
    with atomic_write(metrics) as file:
        file.writelines(line + "\n" for line in kept)
