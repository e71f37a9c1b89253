"""Finding losses that are NaN or infinite without waiting for a GPU."""

from collections import deque
from collections.abc import Iterator
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor


class BadLoss(NamedTuple):
    """A loss that is not finite, and the ids of the samples of its micro-batch."""

    loss: float
    ids: list[str]


class StepLosses(NamedTuple):
    """The losses of a step that are not finite; `step` counts the steps before it."""

    step: int
    bad: list[BadLoss]


class _Copy(NamedTuple):
    step: int
    losses: Tensor
    ids: list[list[str]]
    arrived: torch.cuda.Event | None


class LossWatch:
    """The losses of each step, copied to the CPU in the background and read once the next step has been given out.

    To read a value of a GPU is to wait for all work it was given before, so the loss of a step is read when the GPU has
    the next step to work on. Elsewhere it is read at once.
    """

    def __init__(self) -> None:
        self._now: list[tuple[Tensor, list[str]]] = []
        self._copies: deque[_Copy] = deque()

    def see(self, loss: Tensor, ids: list[str]) -> None:
        """Note the loss of a micro-batch, a scalar, and the ids of its samples."""
        self._now.append((loss.detach(), ids))

    def end_step(self, step: int) -> None:
        """Begin to copy the losses seen since the last call; `step` counts the steps before this one."""
        if not self._now:
            return
        losses, arrived = _begin_copy(torch.stack([loss for loss, _ in self._now]))
        self._copies.append(_Copy(step, losses, [ids for _, ids in self._now], arrived))
        self._now = []

    def next(self) -> StepLosses | None:
        """The oldest step not read yet whose losses need no waiting for; None if there is none."""
        if not self._copies or (self._copies[0].arrived is not None and len(self._copies) == 1):
            return None
        return self._read()

    def rest(self) -> Iterator[StepLosses]:
        """All steps not read yet, the oldest first; waits for a GPU."""
        while self._copies:
            yield self._read()

    def _read(self) -> StepLosses:
        step, losses, ids, arrived = self._copies.popleft()
        if arrived is not None:
            arrived.synchronize()
        found = zip(losses.tolist(), ids, strict=True)
        return StepLosses(step, [BadLoss(loss, names) for loss, names in found if not isfinite(loss)])


def _begin_copy(losses: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The losses, and what tells when they have arrived from a GPU; None if they may be read at once."""
    if losses.device.type != "cuda":
        return losses, None
    copy = torch.empty(losses.shape, dtype=losses.dtype, pin_memory=True).copy_(losses, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return copy, arrived
