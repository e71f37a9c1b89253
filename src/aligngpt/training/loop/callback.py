"""Progress, metrics, validation and the end of a stage, step by step."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from aligngpt.device import peak_device_memory
from aligngpt.files import atomic_write
from aligngpt.progress import Meter, say
from aligngpt.training.distributed.fsdp import is_sharded
from aligngpt.training.loop.schedule import STEPS_TO_JUDGE, TrainingClock
from aligngpt.training.loop.trainer import StageTrainer
from aligngpt.training.loop.validation import Validation
from aligngpt.training.recipe import StageRecipe


class StageCallback(TrainerCallback):
    """Handles the progress bar, metrics, validation, checkpoint intervals and the end of the time budget.

    Args:
        description: text of the progress bar.
        stage: the stage's settings.
        clock: the stage's training time.
        metrics: JSON lines file that each logged step is appended to.
        validation: measured every `stage.validation.minutes` and at the end.

    Attributes:
        trainer: the trainer that calls this; set once it exists.
        resumed_from: the checkpoint that training resumes from; None if it starts from the beginning.
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
        """Count the step; request a checkpoint, a metrics line or the end of training when due."""
        self.trainer.agree()
        progress = self.clock.progress(state.global_step, state.max_steps)
        self._say_when_late(state)
        self._validate(state, kwargs["model"], in_bfloat16=args.bf16, ends=progress >= 1)
        if progress >= 1 and self._wants_another_round(state):
            self.clock.next_round(state.global_step)
            progress = self.clock.progress(state.global_step, state.max_steps)
        if self.meter is not None and progress > 0:
            began = self.clock.began_step
            self.meter.total = max(state.global_step, began + round((state.global_step - began) / progress))
            self.meter.advance(remark=self.remark)
        if progress >= 1:
            control.should_training_stop = True
            control.should_log = True
        elif self.clock.agreed - self.saved_at >= 60 * self.stage.checkpoint_minutes:
            # Never at the last step: a run resumed there would have no step left, but take one more.
            control.should_save = True

    def _say_when_late(self, state: Any) -> None:
        if state.global_step - self.first_step != STEPS_TO_JUDGE or not state.is_world_process_zero:
            return
        if (seconds := self.clock.late(state.global_step, self.first_step)) is not None:
            say(
                f"this machine is slow or busy: the {self.clock.min_steps} steps of this stage will take about "
                f"{seconds / 60:.0f} minutes, not {self.clock.minutes:g}"
            )

    def _wants_another_round(self, state: Any) -> bool:
        """Whether the accuracy is too low and there is a round left; the same in every process."""
        settings = self.stage.validation
        if settings is None or settings.until_accuracy is None or state.global_step >= state.max_steps:
            return False
        # If the model is not sharded, only the main process has validated it.
        accuracy = self.trainer.of_main(self.accuracy)
        if accuracy >= settings.until_accuracy:
            return False
        more = self.clock.round < settings.rounds
        if state.is_world_process_zero:
            say(
                f"{accuracy:.1%} of the validation answers are right, the target is {settings.until_accuracy:.0%}: "
                + (
                    f"training continues with round {self.clock.round + 1} of at most {settings.rounds}"
                    if more
                    else f"training ends anyway after {self.clock.round} rounds"
                )
            )
        return more

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the interval to the next checkpoint when this one has been written."""
        self.saved_at = self.clock.agreed

    def on_log(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Append the logged metrics to the metrics file."""
        logs = kwargs["logs"]
        if "loss" not in logs:
            return
        self.remark = f"loss {logs['loss']:.3f} {logs['tokens_per_second']:,.0f} tokens/s"
        if (mfu := logs.get("mfu")) is not None:
            self.remark += f" MFU {mfu:.1%}"
        if (peak := peak_device_memory(args.device)) is not None:
            logs["peak_device_gb"] = round(peak / 1e9, 2)
        self._write(state, {name: value for name, value in logs.items() if name != "epoch"})

    def _validate(self, state: Any, model: Any, *, in_bfloat16: bool, ends: bool) -> None:
        if self.validation is None or self.stage.validation is None:
            return
        if not ends and self.clock.agreed - self.validated_at < 60 * self.stage.validation.minutes:
            return
        self.validated_at = self.clock.agreed
        self.trainer.check_losses()
        # Every process holds a part of a sharded model, so all of them must take part.
        if state.is_world_process_zero or is_sharded(model):
            measured = self.validation.measure(model, in_bfloat16=in_bfloat16)
            losses = {f"validation_loss_{name}": loss for name, loss in measured.losses.items()}
            figures = {"validation_loss": measured.loss, "validation_accuracy": measured.accuracy}
            self._write(state, figures | losses)
            self.accuracy = measured.accuracy

    def _write(self, state: Any, figures: dict[str, float]) -> None:
        if state.is_world_process_zero:
            line = {"step": state.global_step, "epoch": state.epoch, "seconds": round(self.clock.seconds, 2)}
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | figures) + "\n")

    def close(self, error: BaseException | None = None) -> None:
        """Close the progress bar."""
        if self.meter is not None:
            self.meter.__exit__(type(error) if error else None)
            self.meter = None


def forget_metrics_after(metrics: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will repeat, and a line that a killed process cut short."""
    if not metrics.is_file():
        return
    kept = []
    # A killed process may have cut the last line anywhere, even inside a character.
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if int(json.loads(line)["step"]) <= step:
                kept.append(line)
        except (ValueError, TypeError, KeyError):
            continue
    with atomic_write(metrics) as file:
        file.writelines(line + "\n" for line in kept)
