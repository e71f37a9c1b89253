"""Several processes that train one model: which of them does what is done once, and what they must agree on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

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


def add_up(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The sum of a vector over all processes, in double precision on the CPU; its own values without others."""
    if not _together():
        return values
    # GPUs of some makers know no double precision; the processes that train on them are one.
    shared = values.to(device, torch.float64)
    torch.distributed.all_reduce(shared)
    return shared.cpu()


def gather(values: list[Any]) -> list[Any]:
    """The values of all processes behind each other, the main process's first."""
    if not _together():
        return values
    found: list[list[Any]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(found, values)
    return [one for part in found for one in part]


def _together() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
