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
    """

    hash: str
    width: int
    height: int
    pixels: NDArray[Any]
    mark: bytes = b""


class Refused(NamedTuple):
    """An unusable image; `reason` is one of `IMAGE_REASONS`, `mark` is as in `Prepared`."""

    reason: str
    detail: str
    mark: bytes = b""


@dataclass(frozen=True)
class ByteProcessor:
    """An image processor's resizing and cropping on 8-bit pixels, with rescaling and normalisation as a lookup table.

    CLIP's and SigLIP's image processors compute each of 150,000 values, which can only be one of 256 per channel, and
    convert from Pillow to numpy and back to resize. This takes 2 ms per image of 450 × 450 pixels instead of 3.5, and
    workers send a quarter of the bytes. `byte_processor` returns one only if its results are identical to the bit.

    Attributes:
        size: `(height, width)` to resize to, or the length of the shorter edge.
        crop: `(height, width)` of the centre crop; None for no crop.
        resample: Pillow's number of the resampling filter.
        values: the output for each 8-bit value in each channel, float32 `(3, 256)`.
    """

    size: tuple[int, int] | int
    crop: tuple[int, int] | None
    resample: int
    values: NDArray[np.float32]

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """The 8-bit pixels of an RGB image, `(3, height, width)`."""
        width, height = image.size
        if isinstance(self.size, int):
            shorter = min(width, height)
            width, height = int(self.size * width / shorter), int(self.size * height / shorter)
        else:
            height, width = self.size
        image = image.resize((width, height), Image.Resampling(self.resample))
        if self.crop is not None:
            left, top = (width - self.crop[1]) // 2, (height - self.crop[0]) // 2
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def look_up(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """The image processor's output for 8-bit pixels: `(images, 3, height, width)`."""
        found = np.empty((len(pictures), *pictures[0].shape), np.float32)
        # A single channel fits into the CPU cache.
        for picture, into in zip(pictures, found, strict=True):
            for channel, values in enumerate(self.values):
                np.take(values, picture[channel], out=into[channel], mode="clip")
        return found


def byte_processor(image_processor: Any) -> ByteProcessor | None:
    """The 8-bit version of an image processor; None if its output differs in any bit on a set of test images."""
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    options = {"do_resize": False, "do_center_crop": False, "return_tensors": "np"}
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    try:
        size = image_processor.size
        crop = image_processor.crop_size if getattr(image_processor, "do_center_crop", False) else None
        found = ByteProcessor(
            size["shortest_edge"] if size.get("shortest_edge") else (size["height"], size["width"]),
            None if crop is None else (crop["height"], crop["width"]),
            int(image_processor.resample),
            image_processor([Image.fromarray(ramp)], **options)["pixel_values"][0].reshape(3, 256).astype(np.float32),
        )
        # A crop larger than the resized image needs padding, which is left to the image processor.
        if found.crop is not None and isinstance(found.size, int) and found.size < max(found.crop):
            return None
        for width, height in ((600, 401), (333, 600), (599, 599), (61, 97), (130, 5)):
            image = Image.fromarray(noise[:height, :width])
            expected = image_processor([image], return_tensors="np")["pixel_values"]
            if expected.dtype != np.float32 or not np.array_equal(found.look_up([found(image)]), expected):
                return None
    except (AttributeError, KeyError, TypeError, ValueError):
        # Not a processor of this kind.
        return None
    return found


@dataclass(frozen=True)
class Preparation:
    """Opens images and preprocesses them as a scorer does; small enough to be sent to another process.

    Attributes:
        image_processor: the model's own.
        dtype: the model's compute precision, so that workers send no more bytes than it reads.
        in_bytes: the 8-bit version of the image processor, if there is one.
    """

    image_processor: Any
    dtype: torch.dtype
    in_bytes: ByteProcessor | None = None

    @classmethod
    def of(cls, scorer: PairScorer) -> "Preparation":
        """The preparation for a scorer."""
        return cls(scorer.image_processor, scorer.dtype, byte_processor(scorer.image_processor))

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
            array = self._float_pixels(image) if self.in_bytes is None else self.in_bytes(image)
        except ImageError as error:
            return Refused(error.reason, str(error), mark)
        except (ValueError, MemoryError) as error:
            return Refused("unreadable", f"{picture.name} cannot be prepared for the model: {error}", mark)
        return Prepared(hashlib.blake2b(content, digest_size=16).hexdigest(), *image.size, array, mark)

    def _float_pixels(self, image: Image.Image) -> NDArray[Any]:
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
    """

    def __init__(self, scorer: PairScorer, count: int, *, processes: bool | None = None) -> None:
        if count < 0:
            raise ValueError(f"expected 0 or more workers, found {count}")
        preparation = Preparation.of(scorer)
        if processes is None:
            processes = scorer.device.type != "cpu" or preparation.in_bytes is None
        self.pixel_values = preparation.pixel_values
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
