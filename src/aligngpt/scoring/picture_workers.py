"""Opening pictures ahead of the model, in processes of their own: decoded, resized and as the model reads them."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from types import TracebackType
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray

from aligngpt.data.images import ImageError
from aligngpt.data.pictures import Picture
from aligngpt.errors import AlignGPTError
from aligngpt.scoring.encoders import PairScorer

PICTURES_PER_TASK = 8
TASKS_AHEAD = 2
"""How many tasks wait for each worker: with `PICTURES_PER_TASK`, what bounds the pixels that are held at once."""

MAX_ASPECT = 200
"""Pictures that are longer than this many times their width are refused: resized by the shorter side, as CLIP's are,
20000 × 1 pixels would need gigabytes."""


class WorkerError(AlignGPTError):
    """A process that opens pictures ended before its work was done."""


class Prepared(NamedTuple):
    """A picture ready for the model.

    It travels from a worker pickled, which costs a tenth to a fifth of what opening and resizing it does.

    Attributes:
        hash: BLAKE2b of the file's content, 128 bits in hexadecimal.
        width: of the upright picture, in pixels.
        height: likewise.
        pixels: what the image processor made of it, `(3, height, width)`; bfloat16, which numpy lacks, as int16.
    """

    hash: str
    width: int
    height: int
    pixels: NDArray[Any]


class Refused(NamedTuple):
    """A picture that cannot be used; `reason` is one of `IMAGE_REASONS`."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Preparation:
    """Opens pictures and prepares them as a scorer does; small enough to be sent to another process.

    Attributes:
        image_processor: the model's own.
        dtype: what the model computes with, so that no more bytes travel than it will read.
    """

    image_processor: Any
    dtype: torch.dtype

    def __call__(self, pictures: Sequence[Picture]) -> list[Prepared | Refused]:
        """What became of each picture, in their order."""
        return [self._prepare(picture) for picture in pictures]

    def _prepare(self, picture: Picture) -> Prepared | Refused:
        try:
            content = picture.read()
            image = replace(picture, path=None, offset=0, length=None, content=content).open()
            if max(image.size) > MAX_ASPECT * min(image.size):
                size = f"{image.width} × {image.height} pixels"
                return Refused("unreadable", f"{picture.name} is too narrow for the model: {size}")
            pixels = self.image_processor([image], return_tensors="pt")["pixel_values"][0].to(self.dtype).contiguous()
        except ImageError as error:
            return Refused(error.reason, str(error))
        except (ValueError, MemoryError) as error:
            return Refused("unreadable", f"{picture.name} cannot be prepared for the model: {error}")
        array = (pixels.view(torch.int16) if self.dtype == torch.bfloat16 else pixels).numpy()
        return Prepared(hashlib.blake2b(content, digest_size=16).hexdigest(), *image.size, array)


class PictureWorkers:
    """Processes that open pictures ahead of the model; a context manager, to be used for any number of shards.

    Args:
        scorer: whose image processor and precision they use.
        count: how many processes; 0 for a thread of this one, which starts at once.
    """

    def __init__(self, scorer: PairScorer, count: int) -> None:
        if count < 0:
            raise ValueError(f"expected 0 or more workers, found {count}")
        preparation = Preparation(scorer.image_processor, scorer.dtype)
        self.ahead = TASKS_AHEAD * max(1, count)
        self._pool: Executor
        self._task: Callable[[Sequence[Picture]], list[Prepared | Refused]]
        if count:
            # A forked process would inherit the locks of torch's threads, and cannot use CUDA.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, context, initializer=_start_worker, initargs=(preparation,))
            self._task = _prepare_in_worker
        else:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="pictures")
            self._task = preparation

    def __enter__(self) -> "PictureWorkers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def prepare(self, pictures: Iterable[Picture]) -> Iterator[Prepared | Refused]:
        """What became of each picture, in their order; `pictures` is read only as far ahead as the workers are.

        Raises:
            WorkerError: a process ended, as when the system takes it for want of memory.
        """
        stream = iter(pictures)
        waiting: deque[Future[list[Prepared | Refused]]] = deque()
        try:
            while True:
                while len(waiting) < self.ahead and (task := list(islice(stream, PICTURES_PER_TASK))):
                    waiting.append(self._pool.submit(self._task, task))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        except BrokenProcessPool as error:
            raise WorkerError(
                "a process that opens pictures ended before its work was done; most often the system ran out of "
                "memory. Run the same command again, it goes on; with fewer workers it needs less memory"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


_preparation: Preparation | None = None
"""What this process does, when it is a worker."""


def _start_worker(preparation: Preparation) -> None:
    global _preparation
    _preparation = preparation
    torch.set_num_threads(1)
    # Ctrl-C goes to every process of the terminal; the one that started the workers ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _prepare_in_worker(pictures: Sequence[Picture]) -> list[Prepared | Refused]:
    if _preparation is None:
        raise WorkerError("this process was not started as a worker")
    return _preparation(pictures)
