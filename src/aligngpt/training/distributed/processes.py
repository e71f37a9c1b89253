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
"""Timeout for waiting on another process, which may be writing a large checkpoint; torch's default is ten minutes."""

LONGEST_PREPARATION = timedelta(days=30)
"""Timeout for waiting on a process that reads a data set for the first time: millions of files may take days. One that
dies ends the others at once, since their connection to it breaks."""


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


def is_first_of_machine() -> bool:
    """Whether this process has the lowest rank on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def choose_own_gpu() -> None:
    """Make "cuda" the GPU of this process, before anything is put on the first one, which is another process's."""
    if launched() and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def join_processes(*, cpu: bool) -> None:
    """Connect this process to the others of its launch, if there are any; called again, it does nothing."""
    if launched():
        PartialState(cpu=cpu, timeout=LONGEST_WAIT)


@contextmanager
def main_process_first(*, cpu: bool) -> Iterator[None]:
    """Let the main process run the body first, then one process of each other machine, then the rest.

    What the body makes once for a machine, such as an entry of its cache, is then made by one process.
    """
    if not launched():
        yield
        return
    join_processes(cpu=cpu)
    if not _together():
        # A launch of one process makes no group on some devices.
        yield
        return
    turn = 0 if is_main_process() else 1 if is_first_of_machine() else 2
    for _ in range(turn):
        _wait_for_all()
    yield
    for _ in range(turn, 2):
        _wait_for_all()


def _wait_for_all() -> None:
    torch.distributed.barrier(group=_on_host(torch.distributed.group.WORLD, LONGEST_PREPARATION))


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
    group = _on_host(torch.distributed.group.WORLD, LONGEST_WAIT)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX, group=group)
    return int(shared)


@cache
def _on_host(world: Any, timeout: timedelta) -> Any:
    """The group of all processes that communicates from CPU to CPU."""
    if torch.distributed.get_backend(world) == "gloo" and timeout == LONGEST_WAIT:
        return world
    return torch.distributed.new_group(backend="gloo", timeout=timeout)


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
