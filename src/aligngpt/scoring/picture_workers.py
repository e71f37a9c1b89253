"""Opening pictures ahead of the model, in threads or processes: decoded, resized and as the model reads them."""

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
from aligngpt.scoring.picture_marks import ABSENT, has_file, mark_of

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

    It travels from a worker pickled, which costs little beside opening and resizing it.

    Attributes:
        hash: BLAKE2b of the file's content, 128 bits in hexadecimal.
        width: of the upright picture, in pixels.
        height: likewise.
        pixels: what `PictureWorkers.pixel_values` takes, `(3, height, width)`: 8-bit, where the image processor only
            looks their values up in a table (see `ByteProcessor`), else what it made of the picture, bfloat16, which
            numpy lacks, as int16.
        mark: see `aligngpt.scoring.picture_marks`; empty for a picture that is not a file of its own.
    """

    hash: str
    width: int
    height: int
    pixels: NDArray[Any]
    mark: bytes = b""


class Refused(NamedTuple):
    """A picture that cannot be used; `reason` is one of `IMAGE_REASONS`, `mark` that of `Prepared`."""

    reason: str
    detail: str
    mark: bytes = b""


@dataclass(frozen=True)
class ByteProcessor:
    """What an image processor does to a picture before it rescales and normalises, on 8-bit pixels throughout.

    CLIP's and SigLIP's, taken literally, compute each of 150,000 values that can only be one of 256 a channel, and go
    from Pillow to numpy and back to resize. This takes 2 ms a picture of 450 × 450 pixels where they take 3.5, and a
    quarter of the bytes travel from a worker. `byte_processor` makes one only where not a bit differs.

    Attributes:
        size: `(height, width)` to resize to, or the length of the shorter edge.
        crop: `(height, width)` to cut out of the middle; None for all of it.
        resample: Pillow's number of the filter.
        values: what each 8-bit value becomes in each channel, float32 `(3, 256)`.
    """

    size: tuple[int, int] | int
    crop: tuple[int, int] | None
    resample: int
    values: NDArray[np.float32]

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """The 8-bit pixels of an RGB picture, `(3, height, width)`."""
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
        """What the image processor makes of the pictures: `(pictures, 3, height, width)`."""
        found = np.empty((len(pictures), *pictures[0].shape), np.float32)
        # A channel at a time stays in the processor's cache.
        for picture, into in zip(pictures, found, strict=True):
            for channel, values in enumerate(self.values):
                np.take(values, picture[channel], out=into[channel], mode="clip")
        return found


def byte_processor(image_processor: Any) -> ByteProcessor | None:
    """The same preprocessing in 8 bits; None where it is not the same, bit by bit, on pictures that are tried."""
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
        # Padding, which a crop larger than the picture asks for, is left to the image processor.
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
    """Opens pictures and prepares them as a scorer does; small enough to be sent to another process.

    Attributes:
        image_processor: the model's own.
        dtype: what the model computes with, so that no more bytes travel than it will read.
        in_bytes: does the same in 8 bits, where it can be done.
    """

    image_processor: Any
    dtype: torch.dtype
    in_bytes: ByteProcessor | None = None

    @classmethod
    def of(cls, scorer: PairScorer) -> "Preparation":
        """What prepares pictures for a scorer."""
        return cls(scorer.image_processor, scorer.dtype, byte_processor(scorer.image_processor))

    def __call__(self, pictures: Sequence[Picture]) -> list[Prepared | Refused]:
        """What became of each picture, in their order."""
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
        pixels = self.image_processor([image], return_tensors="pt")["pixel_values"][0].to(self.dtype).contiguous()
        return (pixels.view(torch.int16) if self.dtype == torch.bfloat16 else pixels).numpy()

    def pixel_values(self, pictures: Sequence[NDArray[Any]]) -> Tensor:
        """What the image processor made of pictures that are prepared: `(pictures, 3, height, width)`."""
        if self.in_bytes is not None:
            return torch.from_numpy(self.in_bytes.look_up(pictures))
        tensor = torch.from_numpy(np.stack(pictures))
        return tensor.view(self.dtype) if self.dtype == torch.bfloat16 else tensor


class PictureWorkers:
    """What opens pictures ahead of the model; a context manager, to be used for any number of shards.

    Threads where the model runs on the CPU and pictures stay in 8 bits: Pillow computes without Python's lock, threads
    start at once, and the model leaves no core for Python to keep up with more. Processes else, which take seconds to
    start: many of them keep a GPU busy, and an image processor's own code holds the lock.

    Args:
        scorer: whose image processor and precision they use.
        count: how many; 0 for one thread.
        processes: whether they are processes; decided as above when None.
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
            # A forked process would inherit the locks of torch's threads, and cannot use CUDA.
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
