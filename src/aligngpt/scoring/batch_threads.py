"""Runs whole batches through a model in threads."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from aligngpt.scoring.encoders import Features

MAX_MODEL_THREADS = 8
"""Maximum number of model threads; each holds the activations of a batch."""


class BatchThreads:
    """Threads that each run a whole batch through a model; a context manager.

    On a CPU, torch's own threads split every operation of a batch and wait for the slowest one at its end. With workers
    opening images at the same time, one of them is always late: two threads on two busy cores then take longer than one
    would. With one thread per batch, none waits for another. With more cores than `MAX_MODEL_THREADS`, a batch gets
    several torch threads. Other devices have one queue, which one thread keeps full.

    Args:
        device: the model's device.
    """

    def __init__(self, device: torch.device) -> None:
        self._torch_threads = torch.get_num_threads()
        self._on_cpu = device.type == "cpu"
        self._count = min(MAX_MODEL_THREADS, self._torch_threads) if self._on_cpu else 1
        self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="model", initializer=self._start)
        self._running: deque[Future[Features]] = deque()
        self._features: list[Features] = []

    def __enter__(self) -> "BatchThreads":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._on_cpu:
            torch.set_num_threads(self._torch_threads)

    def submit(self, encode: Callable[[], Features]) -> None:
        """Encode a batch once a thread is free; blocks while more than one other batch is waiting for a thread."""
        self._running.append(self._pool.submit(encode))
        if len(self._running) > self._count + 1:
            self._features.append(self._running.popleft().result())

    def results(self) -> list[Features]:
        """The features of all batches, in the order they were submitted."""
        self._features += [future.result() for future in self._running]
        self._running.clear()
        return self._features

    def _start(self) -> None:
        if self._on_cpu:
            torch.set_num_threads(self._torch_threads // self._count)
