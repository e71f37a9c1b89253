"""Scores shards: images are opened ahead of the model, and each distinct image and caption of a shard is encoded once.

Batches consist of the shard's distinct images, in order of first appearance, and of its distinct captions, shortest
first to reduce padding. So the batches, and with them the last digits of a score, depend on the shard alone: not on the
number of processes that open images, nor on where an earlier run was interrupted.

Nothing waits between shards: while the last images of a shard are encoded, the first ones of the next shard are opened,
and a thread of its own encodes the captions of a shard (on a GPU among the images of the next one) and writes its part.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from numpy.typing import NDArray

from aligngpt.data.records.pairs import PairSource
from aligngpt.data.sources.base import Shard
from aligngpt.scoring.device_queue import ModelQueue, model_queue
from aligngpt.scoring.encoders import Features, PairScorer
from aligngpt.scoring.missing_pictures import MissingPictures
from aligngpt.scoring.part_making import EncodedImage, PartMaker, ShardImages
from aligngpt.scoring.picture_workers import PictureWorkers
from aligngpt.scoring.preparation import Prepared, Refused
from aligngpt.scoring.score_files import PartSummary
from aligngpt.scoring.shard_reading import ShardReading, ShardsAhead

SHARDS_BEHIND = 1
"""Number of shards whose parts may still be unwritten when the images of another one have all been encoded."""


def score_shard(source: PairSource, shard: Shard, scorer: PairScorer, out: Path, **options: Any) -> PartSummary:
    """Score the pairs of one shard and write its part; takes and raises what `score_shards` does.

    Returns:
        The numbers of scored and rejected records.
    """
    found: list[PartSummary] = []
    score_shards(source, [shard], scorer, out, finished=lambda _, summary: found.append(summary), **options)
    return found[0]


def score_shards(
    source: PairSource,
    shards: Iterable[Shard],
    scorer: PairScorer,
    out: Path,
    *,
    batch_size: int,
    workers: PictureWorkers,
    finished: Callable[[Shard, PartSummary], None],
    others: Mapping[str, PairScorer] = MappingProxyType({}),
    embeddings: bool = False,
    shuffled: bool = True,
    may_all_be_missing: bool = True,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Score the pairs of shards and write a part for each; see `aligngpt.scoring.score_files` for the format.

    When an error ends the scoring, the parts of shards whose images have all been encoded are still written; not so
    after an interruption (Ctrl-C).

    Args:
        source: the source of the pairs.
        shards: some of `source.shards()`.
        scorer: the model.
        out: folder of the parts.
        batch_size: distinct images, or distinct captions, encoded together; at least 1.
        workers: made for `scorer` and `others`.
        finished: called with each shard and its numbers of scored and rejected records, in the order of `shards`, soon
            after its part has been written. If it raises an error, this ends the scoring.
        others: more models that score the same pairs, by the name of their score's column. Each computes on the batches
            that it would have alone, so its scores are the same to the bit.
        embeddings: also store the features of `scorer`.
        shuffled: also score each image with the caption of another pair, see `aligngpt.scoring.separation`; with
            `scorer` only.
        may_all_be_missing: continue even if no image is found at all (see `MissingPictures`).
        advance: called with the number of records read since the last call.

    Raises:
        ScorerError: the model gives a score that is not finite.
        TooManyRejects: no image is found, and `may_all_be_missing` is false.
        WorkerError: a process that opens images died.
        OSError: a part cannot be written.
    """
    ahead = ShardsAhead(source, shards)
    # All models are on one device.
    with model_queue(scorer.device) as models:
        maker = PartMaker(scorer, others, out, batch_size, embeddings, shuffled, models)
        with _Making(maker, finished) as making:
            encoding: _Encoding | None = None
            for results in workers.prepare_tasks(ahead.tasks()):
                if encoding is None:
                    reading = ahead.begun[0]
                    watch = None if may_all_be_missing else MissingPictures(source, reading.shard)
                    encoding = _Encoding(reading, maker, workers, watch, advance)
                if results:
                    encoding.add(results)
                    making.tell()
                else:
                    making.submit(encoding.end())
                    ahead.begun.popleft()
                    encoding = None
            making.tell(unfinished=0)
    if ahead.failure is not None:
        raise ahead.failure


class _Encoding:
    """A shard whose images are being given to the models, in batches of distinct ones."""

    def __init__(
        self,
        reading: ShardReading,
        maker: PartMaker,
        workers: PictureWorkers,
        watch: MissingPictures | None,
        advance: Callable[[int], None],
    ) -> None:
        self._reading, self._watch, self._advance = reading, watch, advance
        self._scorers = (maker.scorer, *maker.others.values())
        self._models: ModelQueue = maker.models
        self._preparations = workers.preparations
        self._batch_size = maker.batch_size
        self._marks = bytearray()
        self._found: list[EncodedImage | Refused] = []
        self._rows: dict[str, int] = {}
        self._waiting: list[tuple[NDArray[Any], ...]] = []
        self._features: list[list[Future[Features]]] = [[] for _ in self._scorers]
        self._unseen: deque[Future[Features]] = deque()
        self._taken = self._told = 0

    def add(self, results: Iterable[Prepared | Refused]) -> None:
        """Take the results for the next images of the shard."""
        for result in results:
            if self._watch is not None:
                self._watch.see(result)
            self._marks += result.mark
            if isinstance(result, Refused):
                self._found.append(result)
                continue
            row = self._rows.setdefault(result.hash, len(self._rows))
            self._found.append(EncodedImage(result.hash, result.width, result.height, row))
            if len(self._rows) > self._taken + len(self._waiting):
                self._waiting.append((result.pixels, *result.more))
            if len(self._waiting) == self._batch_size:
                self._submit()
        self._tell()

    def end(self) -> ShardImages:
        """The shard, when all of its images have been added."""
        if self._waiting:
            self._submit()
        self._tell()
        return ShardImages(self._reading, self._found, self._features, bytes(self._marks))

    def _submit(self) -> None:
        of_models = zip(*self._waiting, strict=True)
        for scorer, preparation, pictures, features in zip(
            self._scorers, self._preparations, of_models, self._features, strict=True
        ):
            future = self._models.images(scorer, preparation, pictures)
            features.append(future)
            self._unseen.append(future)
        self._taken += len(self._waiting)
        self._waiting = []
        # An error of the model should not wait for the end of the shard.
        while self._unseen and self._unseen[0].done():
            self._unseen.popleft().result()

    def _tell(self) -> None:
        self._advance(self._reading.records - self._told)
        self._told = self._reading.records


class _Making:
    """A thread that makes parts; a context manager."""

    def __init__(self, maker: PartMaker, finished: Callable[[Shard, PartSummary], None]) -> None:
        self._maker = maker
        self._finished = finished
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="parts")
        self._unfinished: deque[tuple[Shard, Future[PartSummary]]] = deque()

    def __enter__(self) -> "_Making":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        if interrupted:
            self._maker.stopping.set()
        self._pool.shutdown(cancel_futures=interrupted)

    def submit(self, images: ShardImages) -> None:
        """Make the part of a shard; blocks while more than `SHARDS_BEHIND` others are unfinished."""
        self._unfinished.append((images.reading.shard, self._pool.submit(self._maker.make, images)))
        self.tell(SHARDS_BEHIND)

    def tell(self, unfinished: int = SHARDS_BEHIND + 1) -> None:
        """Report the shards that are finished; first wait until at most `unfinished` are not."""
        while self._unfinished and (len(self._unfinished) > unfinished or self._unfinished[0][1].done()):
            shard, future = self._unfinished.popleft()
            self._finished(shard, future.result())
