"""Opens images ahead of the model, in threads or processes: decodes, resizes and preprocesses them for the model."""

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

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from aligngpt.data.images.opening import ImageError
from aligngpt.data.images.reference import Picture
from aligngpt.errors import AlignGPTError
from aligngpt.scoring.byte_processor import ByteProcessor, byte_processor
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.patches import pixels_of
from aligngpt.scoring.picture_marks import ABSENT, has_file, mark_of

PICTURES_PER_TASK = 8
TASKS_AHEAD = 2
"""Number of queued tasks per worker; with `PICTURES_PER_TASK`, this bounds the pixels held in memory."""

MAX_ASPECT = 200
"""Images with a larger ratio of longer to shorter side are rejected: resized by the shorter side, as for CLIP, one of
20000 × 1 pixels would need gigabytes."""


class WorkerError(AlignGPTError):
    """A process that opens images died before its work was done."""


class Prepared(NamedTuple):
    """An image ready for the model.

    Workers return it pickled, which costs little compared to opening and resizing it.

    Attributes:
        hash: BLAKE2b of the file's content, 128 bits in hexadecimal.
        width: width of the upright image, in pixels.
        height: height of the upright image, in pixels.
        pixels: input of `PictureWorkers.pixel_values`, `(3, height, width)`: 8-bit pixels if the image processor can be
            replaced by a lookup table (see `ByteProcessor`), otherwise the image processor's output; bfloat16, which
            numpy lacks, is stored as int16.
        mark: see `aligngpt.scoring.picture_marks`; empty for an image that is not a separate file.
        more: the same as `pixels` for each of the other models, if several score the pairs.
    """

    hash: str
    width: int
    height: int
    pixels: NDArray[Any]
    mark: bytes = b""
    more: tuple[NDArray[Any], ...] = ()


class Refused(NamedTuple):
    """An unusable image; `reason` is one of `IMAGE_REASONS`, `mark` is as in `Prepared`."""

    reason: str
    detail: str
    mark: bytes = b""


@dataclass(frozen=True)
class Preparation:
    """Opens images and preprocesses them as a scorer does; small enough to be sent to another process.

    Attributes:
        image_processor: the model's own.
        dtype: the model's compute precision, so that workers send no more bytes than it reads.
        in_bytes: the 8-bit version of the image processor, if there is one.
        others: the preparations for the other models, if several score the pairs.
    """

    image_processor: Any
    dtype: torch.dtype
    in_bytes: ByteProcessor | None = None
    others: "tuple[Preparation, ...]" = ()

    @classmethod
    def of(cls, scorer: PairScorer, others: Sequence[PairScorer] = ()) -> "Preparation":
        """The preparation for a scorer, and for others that score the same images."""
        found = byte_processor(scorer.image_processor)
        return cls(scorer.image_processor, scorer.dtype, found, tuple(map(cls.of, others)))

    def __call__(self, pictures: Sequence[Picture]) -> list[Prepared | Refused]:
        """The result for each image, in order."""
        return [self._prepare(picture) for picture in pictures]

    def _prepare(self, picture: Picture) -> Prepared | Refused:
        mark = ABSENT if has_file(picture) else b""
        try:
            content = picture.read()
            mark = mark and mark_of(content)
            image = replace(picture, path=None, offset=0, length=None, content=content).open()
            if max(image.size) > MAX_ASPECT * min(image.size):
                size = f"{image.width} × {image.height} pixels"
                return Refused("unreadable", f"{picture.name} is too narrow for the model: {size}", mark)
            array, *more = (one.pixels_for(image) for one in (self, *self.others))
        except ImageError as error:
            return Refused(error.reason, str(error), mark)
        except (ValueError, MemoryError) as error:
            return Refused("unreadable", f"{picture.name} cannot be prepared for the model: {error}", mark)
        return Prepared(hashlib.blake2b(content, digest_size=16).hexdigest(), *image.size, array, mark, tuple(more))

    def pixels_for(self, image: Image.Image) -> NDArray[Any]:
        """The pixels of an RGB image for this model, see `Prepared.pixels`."""
        if self.in_bytes is not None:
            return self.in_bytes(image)
        pixels = pixels_of(self.image_processor, [image])[0].to(self.dtype).contiguous()
        return (pixels.view(torch.int16) if self.dtype == torch.bfloat16 else pixels).numpy()

    def pixel_values(self, pictures: Sequence[NDArray[Any]]) -> Tensor:
        """The image processor's output for prepared images: `(images, 3, height, width)`."""
        if self.in_bytes is not None:
            return torch.from_numpy(self.in_bytes.look_up(pictures))
        tensor = torch.from_numpy(np.stack(pictures))
        return tensor.view(self.dtype) if self.dtype == torch.bfloat16 else tensor


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
    """

    def __init__(
        self, scorer: PairScorer, count: int, *, processes: bool | None = None, others: Sequence[PairScorer] = ()
    ) -> None:
        if count < 0:
            raise ValueError(f"expected 0 or more workers, found {count}")
        preparation = Preparation.of(scorer, others)
        all_of_them = (preparation, *preparation.others)
        if processes is None:
            processes = scorer.device.type != "cpu" or any(one.in_bytes is None for one in all_of_them)
        self.pixel_values = preparation.pixel_values
        self.pixel_values_of = tuple(one.pixel_values for one in all_of_them)
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
                "a process that opens images died before its work was done; most often the system ran out of memory. "
                "Run the same command again to resume; with fewer workers it needs less memory"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


_preparation: Preparation | None = None
"""The preparation of this process, if it is a worker."""


def _start_worker(preparation: Preparation) -> None:
    global _preparation
    _preparation = preparation
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of the terminal; the parent process ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker with its parent: if the parent is killed, the worker would otherwise hang waiting for work."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _prepare_in_worker(pictures: Sequence[Picture]) -> list[Prepared | Refused]:
    if _preparation is None:
        raise WorkerError("this process was not started as a worker")
    return _preparation(pictures)
