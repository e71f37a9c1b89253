"""Several processes that train one model: which of them does what is done once, and what they must agree on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState

LONGEST_WAIT = timedelta(hours=2)
"""For another process, which may be reading a large data set for the first time; torch's own limit is ten minutes."""


def launched() -> bool:
    """Whether `torchrun` or `accelerate launch` started this process, as one of some."""
    return "RANK" in os.environ


def rank() -> int:
    """The number of this process among those that train together, as `torchrun` and `accelerate launch` set it."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_of_machine() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process prints, and writes what is written once."""
    return rank() == 0


@contextmanager
def main_process_first(*, cpu: bool) -> Iterator[None]:
    """Let the main process go through the body before the others do."""
    if not launched():
        yield
        return
    with PartialState(cpu=cpu, timeout=LONGEST_WAIT).main_process_first():
        yield


def of_main_process(value: float, device: torch.device) -> float:
    """The value that the main process has: processes that decide by their own clocks would part."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.broadcast(shared, src=0)
    return float(shared.item())
