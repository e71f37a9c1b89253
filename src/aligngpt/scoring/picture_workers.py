"""Opens images ahead of the model, in threads or processes."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from types import TracebackType

import torch

from aligngpt.data.images.reference import Picture
from aligngpt.errors import AlignGPTError
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.preparation import Preparation, Prepared, Refused
from aligngpt.worker_processes import end_with_parent

PICTURES_PER_TASK = 8
TASKS_AHEAD = 2
"""Number of queued tasks per worker; with `PICTURES_PER_TASK`, this bounds the pixels held in memory."""


class WorkerError(AlignGPTError):
    """A process that opens images died before its work was done."""


class PictureWorkers:
    """A pool that opens images ahead of the model; a context manager, reusable for any number of shards.

    Uses threads if the model runs on the CPU and images stay in 8 bits: Pillow releases the GIL, threads start at once,
    and the model leaves no core free for more Python processes. Otherwise it uses processes, which take seconds to
    start: many of them can keep a GPU busy, and an image processor's own code holds the GIL.

    Args:
        scorer: provides the image processor and the precision.
        count: number of workers; 0 for one thread.
        processes: whether to use processes; chosen as above when None.
        others: other models that score the same images; each image is opened once for all of them.

    Attributes:
        preparations: those of the models, `scorer` first.
        ahead: number of tasks that are opened, or queued to be opened, ahead of the results.
    """

    def __init__(
        self, scorer: PairScorer, count: int, *, processes: bool | None = None, others: Sequence[PairScorer] = ()
    ) -> None:
        if count < 0:
            raise ValueError(f"expected 0 or more workers, found {count}")
        preparation = Preparation.of(scorer, others)
        self.preparations = (preparation, *preparation.others)
        if processes is None:
            processes = scorer.device.type != "cpu" or any(one.in_bytes is None for one in self.preparations)
        self.ahead = TASKS_AHEAD * max(1, count)
        self._pool: Executor
        self._task: Callable[[Sequence[Picture]], list[Prepared | Refused]]
        if count and processes:
            # A forked process would inherit the locks of torch's threads and could not use CUDA.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, context, initializer=_start_worker, initargs=(preparation,))
            self._task = _prepare_in_worker
        else:
            self._pool = ThreadPoolExecutor(max(1, count), thread_name_prefix="pictures")
            self._task = preparation

    def __enter__(self) -> "PictureWorkers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def prepare(self, pictures: Iterable[Picture]) -> Iterator[Prepared | Refused]:
        """Yield the result for each image, in order; `pictures` is read only as far ahead as the workers are.

        Raises:
            WorkerError: a process died, for example killed by the system when memory ran out.
        """
        stream = iter(pictures)
        tasks = iter(lambda: list(islice(stream, PICTURES_PER_TASK)), [])
        for results in self.prepare_tasks(tasks):
            yield from results

    def prepare_tasks(self, tasks: Iterable[Sequence[Picture]]) -> Iterator[list[Prepared | Refused]]:
        """Yield the results for the images of each task, in order; a task may be empty. See `prepare`."""
        stream = iter(tasks)
        waiting: deque[Future[list[Prepared | Refused]]] = deque()
        try:
            while True:
                for task in islice(stream, self.ahead - len(waiting)):
                    waiting.append(self._pool.submit(self._task, task) if task else _nothing())
                if not waiting:
                    return
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise WorkerError(
                "a process that opens images died before its work was done; most often the system ran out of memory. "
                "Run the same command again to resume; with fewer workers it needs less memory"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def _nothing() -> Future[list[Prepared | Refused]]:
    future: Future[list[Prepared | Refused]] = Future()
    future.set_result([])
    return future


_preparation: Preparation | None = None
"""The preparation of this process, if it is a worker."""


def _start_worker(preparation: Preparation) -> None:
    global _preparation
    _preparation = preparation
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of the terminal; the parent process ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _prepare_in_worker(pictures: Sequence[Picture]) -> list[Prepared | Refused]:
    if _preparation is None:
        raise WorkerError("this process was not started as a worker")
    return _preparation(pictures)
