"""Keeps a GPU busy: while it computes on one batch, the next ones are prepared and copied to its memory."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from aligngpt.scoring.batch_threads import BatchThreads
from aligngpt.scoring.encoders import Features, PairScorer
from aligngpt.scoring.preparation import Preparation

BATCHES_IN_FLIGHT = 4
"""Number of batches held at once: one that the device computes, one launched behind it, and two being prepared."""

Inputs = Mapping[str, Tensor]


class DeviceQueue:
    """A queue of batches for one device; a context manager.

    One thread prepares: it stacks the images of a batch in pinned memory, copies them to the device in a stream of
    their own, four times fewer bytes than their float32 values, and looks up the values there; or it tokenizes texts.
    Another thread launches the model on prepared batches, and fetches the features of a batch only after it has
    launched the next one. So neither preparing nor fetching leaves the device without work.

    An Apple GPU must not be used by two threads at a time: there, the latter thread prepares as well.

    Batches come back in the order in which they were submitted. May be used by several threads.

    Args:
        device: the models' device.

    Attributes:
        taken: number of batches that the launching thread has taken.
        ready: how many of them were already prepared at that moment.
    """

    def __init__(self, device: torch.device) -> None:
        self.taken = self.ready = 0
        self._device = device
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        # From memory that is not pinned, a copy to an Apple GPU may still be running when the memory is used again.
        self._asynchronous = self._copying is not None
        self._room = threading.BoundedSemaphore(BATCHES_IN_FLIGHT)
        self._order = threading.Lock()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._preparing = None if device.type == "mps" else ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._launching = threading.Thread(target=self._run, name="model", daemon=True)
        self._launching.start()

    def __enter__(self) -> "DeviceQueue":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._preparing is not None:
            self._preparing.shutdown(cancel_futures=True)
        self._jobs.put(None)
        self._launching.join()

    def images(
        self, scorer: PairScorer, preparation: Preparation, pictures: Sequence[NDArray[Any]]
    ) -> Future[Features]:
        """Encode a batch of prepared images, see `Prepared.pixels`; blocks while `BATCHES_IN_FLIGHT` are held."""

        def prepare() -> Inputs:
            stacked = preparation.stacked(pictures, pinned=self._asynchronous)
            return {"pixels": preparation.values_of(stacked.to(self._device, non_blocking=self._asynchronous))}

        return self.submit(prepare, scorer.encode_pixels)

    def texts(self, scorer: PairScorer, batches: Iterable[Sequence[str]]) -> list[Features]:
        """The features of batches of texts."""

        def prepare(texts: Sequence[str]) -> Inputs:
            tokens = scorer.token_ids(texts)
            if self._asynchronous:
                tokens = {name: ids.pin_memory() for name, ids in tokens.items()}
            return {name: ids.to(self._device, non_blocking=self._asynchronous) for name, ids in tokens.items()}

        futures = [self.submit(partial(prepare, texts), scorer.encode_tokens) for texts in batches]
        return [future.result() for future in futures]

    def submit(self, prepare: Callable[[], Inputs], encode: Callable[..., Tensor]) -> Future[Features]:
        """Encode a batch; blocks while `BATCHES_IN_FLIGHT` are held.

        Args:
            prepare: returns the arguments of `encode`, on the device; copies may still be running in the current
                stream.
            encode: runs the model without waiting for its end; returns `(items, dim)`, on the device.
        """
        # Not held for ever: the launching thread frees a place whether a batch succeeds or not.
        self._room.acquire()
        # Both queues in one order: otherwise the device could wait for a batch that is prepared after another one.
        with self._order:
            prepared = None if self._preparing is None else self._preparing.submit(self._prepared, prepare)
            job = _Job(prepare, prepared, encode, Future())
            self._jobs.put(job)
        return job.features

    def _prepared(self, prepare: Callable[[], Inputs]) -> "_Prepared":
        with torch.inference_mode(), torch.cuda.stream(self._copying) if self._copying else nullcontext():
            inputs = prepare()
            return _Prepared(inputs, self._copying.record_event() if self._copying else None)

    def _run(self) -> None:
        launched: tuple[_Job, _Fetching] | None = None
        while True:
            if launched and self._jobs.empty():
                self._end(*launched)
                launched = None
            job = self._jobs.get()
            if job is None:
                break
            self.taken += 1
            self.ready += job.prepared is not None and job.prepared.done()
            try:
                prepared = self._prepared(job.prepare) if job.prepared is None else job.prepared.result()
                fetching = self._launch(prepared, job.encode)
            except BaseException as error:
                self._fail(job, error)
                continue
            if launched:
                self._end(*launched)
            launched = (job, fetching)
        if launched:
            self._end(*launched)

    def _launch(self, prepared: "_Prepared", encode: Callable[..., Tensor]) -> "_Fetching":
        if prepared.copied is None:
            return _Fetching(encode(**prepared.inputs).cpu(), None)
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(prepared.copied)
        for tensor in prepared.inputs.values():
            # Its memory was allocated in the copying stream, which must not use it again before the model has read it.
            tensor.record_stream(stream)
        found = encode(**prepared.inputs)
        features = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
        features.copy_(found, non_blocking=True)
        return _Fetching(features, stream.record_event())

    def _end(self, job: "_Job", fetching: "_Fetching") -> None:
        try:
            if fetching.fetched is not None:
                fetching.fetched.synchronize()
            # A copy: pinned memory is scarce, and features are kept until the end of their shard.
            features = fetching.features.numpy().copy()
        except BaseException as error:
            self._fail(job, error)
            return
        job.features.set_result(features)
        self._room.release()

    def _fail(self, job: "_Job", error: BaseException) -> None:
        job.features.set_exception(error)
        self._room.release()


class _Prepared(NamedTuple):
    """The inputs of a batch on the device, and the end of their copying; None if they are there already."""

    inputs: Inputs
    copied: torch.cuda.Event | None


class _Fetching(NamedTuple):
    """Features in the CPU's memory, and the end of their copying; None if they are there already."""

    features: Tensor
    fetched: torch.cuda.Event | None


class _Job(NamedTuple):
    """A batch in the queue; `prepared` is None if the launching thread prepares it."""

    prepare: Callable[[], Inputs]
    prepared: Future[_Prepared] | None
    encode: Callable[..., Tensor]
    features: Future[Features]


ModelQueue = BatchThreads | DeviceQueue


def model_queue(device: torch.device) -> ModelQueue:
    """The way to run batches through models on this device; a context manager."""
    return BatchThreads() if device.type == "cpu" else DeviceQueue(device)
