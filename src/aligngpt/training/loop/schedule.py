"""The schedule of a stage: training time, rounds, and the learning rate as a share of its peak."""

import math
import time
from dataclasses import dataclass, field

from aligngpt.training.distributed.processes import is_main_process

STEPS_TO_JUDGE, LATE = 5, 1.2
"""Steps after which the time per step is judged, and the factor over the time budget from which it is reported."""


LEAST_STEPS = 2
"""Steps of a round, however little time there is: the learning rate of a warm-up's first step is 0."""


@dataclass
class TrainingClock:
    """Training time over all runs of a stage, and its progress.

    Attributes:
        minutes: time budget of a round of the schedule; None if there is none.
        min_steps: minimum number of steps in a round, however long they take.
        round: number of the schedule's current round, from 1.
        began_step, began_seconds: step and training time at which the round began.
        before: seconds of training in earlier runs.
        agreed: seconds of training at the last step, the same in all processes; decisions based on time use it.
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
        """Start timing this run."""
        self.started = time.monotonic()
        self.agreed = self.before

    def share(self) -> float:
        """This process's term in the sum that all agree on: the main process's training time, 0 for the others."""
        return self.seconds if is_main_process() else 0.0

    @property
    def seconds(self) -> float:
        """Training time so far, in seconds."""
        return self.before + time.monotonic() - self.started

    def progress(self, step: int, steps: int) -> float:
        """The fraction of the round's steps done, or of its time used if that is larger, 0…1.

        Args:
            step: steps done.
            steps: at most, in all rounds together; a round has those that the rounds before it left.
        """
        of_steps = (step - self.began_step) / max(1, steps - self.began_step)
        if not self.minutes:
            return min(1.0, of_steps)
        of_round = (self.agreed - self.began_seconds) / (60 * self.minutes)
        of_round = min(of_round, (step - self.began_step) / (self.min_steps or LEAST_STEPS))
        return min(1.0, max(of_steps, of_round))

    def next_round(self, step: int) -> None:
        """Start another round of the schedule after `step`."""
        self.round += 1
        self.began_step, self.began_seconds = step, self.agreed

    def late(self, step: int, first: int) -> float | None:
        """Estimated seconds for the round's minimum steps if that clearly exceeds the time budget, else None.

        Args:
            step: steps done.
            first: steps done when this process started.
        """
        if not self.minutes or not self.min_steps or step == first:
            return None
        a_step = (self.agreed - self.before) / (step - first)
        seconds = self.agreed - self.began_seconds + a_step * (self.min_steps - (step - self.began_step))
        return seconds if seconds > LATE * 60 * self.minutes else None


def learning_rate_factor(schedule: str, warmup_ratio: float, progress: float) -> float:
    """The factor on the peak learning rate at `progress` 0…1 of the run."""
    if progress < warmup_ratio:
        return progress / warmup_ratio
    rest = (progress - warmup_ratio) / (1 - warmup_ratio)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    return 1 - rest if schedule == "linear" else 1.0
