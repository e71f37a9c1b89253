"""Several processes training one model: their ranks, the main process, and collective operations."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState

Made = TypeVar("Made")

LONGEST_WAIT = timedelta(hours=2)
"""Timeout for waiting on another process, which may be reading a large data set for the first time; torch's default
is ten minutes."""


def launched() -> bool:
    """Whether `torchrun` or `accelerate launch` started this process."""
    return "RANK" in os.environ


def rank() -> int:
    """The rank of this process, as set by `torchrun` and `accelerate launch`."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """Number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_of_machine() -> int:
    """Number of these processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes shared files."""
    return rank() == 0


@contextmanager
def main_process_first(*, cpu: bool) -> Iterator[None]:
    """Let the main process run the body before the others do."""
    if not launched():
        yield
        return
    with PartialState(cpu=cpu, timeout=LONGEST_WAIT).main_process_first():
        yield


def add_up(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The sum of a vector over all processes, in double precision on the CPU; the vector itself if there is one."""
    if not _together():
        return values
    # Some makers' GPUs lack double precision, but only a single process trains on them.
    shared = values.to(device, torch.float64)
    torch.distributed.all_reduce(shared)
    return shared.cpu()


def largest(number: int) -> int:
    """The largest of the numbers of all processes; waits for the processes, but not for what their GPUs still do."""
    if not _together():
        return number
    shared = torch.tensor(number)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX, group=_on_host(torch.distributed.group.WORLD))
    return int(shared)


@cache
def _on_host(world: Any) -> Any:
    """The group of all processes that communicates from CPU to CPU."""
    if torch.distributed.get_backend(world) == "gloo":
        return world
    return torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)


def gather(values: list[Any]) -> list[Any]:
    """The concatenated values of all processes, the main process's first."""
    if not _together():
        return values
    found: list[list[Any]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(found, values)
    return [one for part in found for one in part]


def from_main(make: Callable[[], Made]) -> Made:
    """What the main process makes, in every process; every process must call it.

    Args:
        make: called in the main process only; its result is pickled.
    """
    if not _together():
        return make()
    found = [make() if is_main_process() else None]
    torch.distributed.broadcast_object_list(found, src=0, device=PartialState().device)
    return cast(Made, found[0])


def _together() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
