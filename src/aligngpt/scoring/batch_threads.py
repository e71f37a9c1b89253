"""Runs whole batches through a model on the CPU, in threads."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

import torch
from numpy.typing import NDArray

from aligngpt.scoring.encoders import Features, PairScorer
from aligngpt.scoring.preparation import Preparation

MAX_MODEL_THREADS = 8
"""Maximum number of model threads; each holds the activations of a batch."""


class BatchThreads:
    """Threads that each run a whole batch through a model; a context manager.

    On a CPU, torch's own threads split every operation of a batch and wait for the slowest one at its end. With workers
    opening images at the same time, one of them is always late: two threads on two busy cores then take longer than one
    would. With one thread per batch, none waits for another. With more cores than `MAX_MODEL_THREADS`, a batch gets
    several torch threads. Other devices have a queue of their own, see `aligngpt.scoring.device_queue`.
    """

    def __init__(self) -> None:
        self._torch_threads = torch.get_num_threads()
        self._count = min(MAX_MODEL_THREADS, self._torch_threads)
        self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="model", initializer=self._start)
        self._running: deque[Future[Features]] = deque()
        self._turn = threading.Lock()

    def __enter__(self) -> "BatchThreads":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._torch_threads)

    def submit(self, encode: Callable[[], Features]) -> Future[Features]:
        """Encode a batch once a thread is free; blocks while more than one other batch is waiting for a thread.

        Only one thread may submit batches.
        """
        while len(self._running) > self._count:
            # Removed only when it has ended: `texts` waits for all that are in it.
            wait([self._running[0]])
            self._running.popleft()
        with self._turn:
            future = self._pool.submit(encode)
            self._running.append(future)
        return future

    def images(
        self, scorer: PairScorer, preparation: Preparation, pictures: Sequence[NDArray[Any]]
    ) -> Future[Features]:
        """Encode a batch of prepared images, see `Prepared.pixels`; blocks as `submit` does."""
        return self.submit(lambda: scorer.pixel_features(preparation.pixel_values(pictures)))

    def texts(self, scorer: PairScorer, batches: Iterable[Sequence[str]]) -> list[Features]:
        """The features of batches of texts, encoded in the calling thread by all torch threads.

        No batch of images runs at the same time: the threads of both would wait for each other.
        """
        with self._turn:
            wait(list(self._running))
            torch.set_num_threads(self._torch_threads)
            return [scorer.text_features(batch) for batch in batches]

    def _start(self) -> None:
        torch.set_num_threads(self._torch_threads // self._count)
