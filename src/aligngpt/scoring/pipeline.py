"""Scores one shard: images are opened ahead of the model, and each distinct image and caption is encoded once.

Batches consist of the shard's distinct images, in order of first appearance, and of its distinct captions, shortest
first to reduce padding. So the batches, and with them the last digits of a score, depend on the shard alone: not on the
number of processes that open images, nor on where an earlier run was interrupted.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from aligngpt.data.images.reference import Picture
from aligngpt.data.records.pairs import Pair, PairSource, Unusable
from aligngpt.data.sources.base import Shard
from aligngpt.scoring.encoders import Features, PairScorer, ScorerError
from aligngpt.scoring.missing_pictures import MissingPictures
from aligngpt.scoring.picture_workers import PictureWorkers, Refused
from aligngpt.scoring.score_files import PartSummary, Reject, part_table, write_part
from aligngpt.scoring.separation import shuffled_partners

MAX_MODEL_THREADS = 8
"""Maximum number of model threads; each holds the activations of a batch."""

CAPTIONS_AT_ONCE = 1000
"""Number of captions tokenized together to count their tokens."""


def score_shard(
    source: PairSource,
    shard: Shard,
    scorer: PairScorer,
    out: Path,
    *,
    batch_size: int,
    workers: PictureWorkers,
    embeddings: bool = False,
    shuffled: bool = True,
    may_all_be_missing: bool = True,
    advance: Callable[[int], None] = lambda _: None,
) -> PartSummary:
    """Score the pairs of one shard and write its part; see `aligngpt.scoring.score_files` for the format.

    Args:
        source: the source of the pairs.
        shard: one of `source.shards()`.
        scorer: the model.
        out: folder of the parts.
        batch_size: distinct images, or distinct captions, encoded together; at least 1.
        workers: made for `scorer`.
        embeddings: also store the features.
        shuffled: also score each image with the caption of another pair, see `aligngpt.scoring.separation`.
        may_all_be_missing: continue even if no image is found at all (see `MissingPictures`).
        advance: called with the number of records read since the last call.

    Returns:
        The numbers of scored and rejected records.

    Raises:
        ScorerError: the model gives a score that is not finite.
        TooManyRejects: no image is found, and `may_all_be_missing` is false.
        WorkerError: a process that opens images died.
        OSError: the part cannot be written.
    """
    reading = _Reading(source.read(shard))
    watch = None if may_all_be_missing else MissingPictures(source, shard)
    images = _encode_images(reading, scorer, batch_size, workers, advance, watch)
    rows = [pair for pair in reading.pairs if isinstance(images.found[pair.picture], _Image)]
    rejects = [*reading.unusable]
    for pair in reading.pairs:
        if isinstance(found := images.found[pair.picture], Refused):
            rejects.append(Reject(pair.record, pair.id, found.reason, found.detail))
    captions = _encode_captions([pair.caption for pair in rows], scorer, batch_size)
    pictures = [found for pair in rows if isinstance(found := images.found[pair.picture], _Image)]
    features = (
        images.features[[picture.row for picture in pictures]],
        captions.features[[captions.rows[pair.caption] for pair in rows]],
    )
    scores = np.einsum("pd,pd->p", *features)
    if not np.isfinite(scores).all():
        wrong = rows[int(np.argmin(np.isfinite(scores)))]
        raise ScorerError(
            f"the model's score of record {wrong.record} (id {wrong.id}) of {shard.name} is not a finite number; its "
            "weights are damaged, or it needs float32 precision"
        )
    table = part_table(
        record=[pair.record for pair in rows],
        id=[pair.id for pair in rows],
        score=scores,
        caption_tokens=[captions.lengths[captions.rows[pair.caption]] for pair in rows],
        size=[(picture.width, picture.height) for picture in pictures],
        image_hash=[picture.hash for picture in pictures],
        shuffled=_shuffled_scores(rows, pictures, *features) if shuffled else None,
        embeddings=features if embeddings else None,
    )
    return write_part(out, shard.index, table, sorted(rejects, key=lambda reject: reject.record), images.marks)


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


class _Row(NamedTuple):
    """A pair without its image's content; `picture` is the number of the image in its shard."""

    record: int
    id: str
    caption: str
    picture: int


class _Image(NamedTuple):
    """What is kept of an encoded image; `row` is its row in the features."""

    hash: str
    width: int
    height: int
    row: int


class _Images(NamedTuple):
    """The result for each image by its number, the features of the distinct images, `(images, dim)`, and the
    concatenated marks of image files."""

    found: list[_Image | Refused]
    features: Features
    marks: bytes


class _Captions(NamedTuple):
    """The row of each distinct caption, their lengths in tokens, and their features, `(captions, dim)`."""

    rows: dict[str, int]
    lengths: list[int]
    features: Features


class _Reading:
    """A shard being read.

    Attributes:
        pairs: the pairs read so far.
        unusable: the records read so far that are not valid pairs.
    """

    def __init__(self, items: Iterable[Pair | Unusable]) -> None:
        self.pairs: list[_Row] = []
        self.unusable: list[Reject] = []
        self._items = items

    @property
    def records(self) -> int:
        """Number of records read so far."""
        return len(self.pairs) + len(self.unusable)

    def pictures(self) -> Iterator[Picture]:
        """Read the shard and yield its images; an image file named by several records is yielded once."""
        numbers: dict[Picture, int] = {}
        count = 0
        for item in self._items:
            if isinstance(item, Unusable):
                self.unusable.append(Reject(item.record, item.id, item.reason, item.detail))
                continue
            number = numbers.get(item.picture, count)
            # A lone surrogate, which no tokenizer accepts, becomes a question mark.
            caption = item.caption.encode("utf-8", "replace").decode("utf-8")
            self.pairs.append(_Row(item.record, item.id, caption, number))
            if number == count:
                count += 1
                # Embedded content would stay in memory until the end of the shard; duplicates are found later, by hash.
                if item.picture.content is None:
                    numbers[item.picture] = number
                yield item.picture


def _encode_images(
    reading: _Reading,
    scorer: PairScorer,
    batch_size: int,
    workers: PictureWorkers,
    advance: Callable[[int], None],
    watch: MissingPictures | None,
) -> _Images:
    marks = bytearray()
    found: list[_Image | Refused] = []
    rows: dict[str, int] = {}
    waiting: list[NDArray[Any]] = []
    taken = told = 0

    def encoding(pictures: list[NDArray[Any]]) -> Callable[[], Features]:
        return lambda: scorer.pixel_features(workers.pixel_values(pictures))

    with BatchThreads(scorer.device) as threads:
        for result in workers.prepare(reading.pictures()):
            if watch is not None:
                watch.see(result)
            marks += result.mark
            if isinstance(result, Refused):
                found.append(result)
            else:
                row = rows.setdefault(result.hash, len(rows))
                found.append(_Image(result.hash, result.width, result.height, row))
                if len(rows) > taken + len(waiting):
                    waiting.append(result.pixels)
            if len(waiting) == batch_size:
                threads.submit(encoding(waiting))
                taken += batch_size
                waiting = []
            advance(reading.records - told)
            told = reading.records
        if waiting:
            threads.submit(encoding(waiting))
        features = threads.results()
    advance(reading.records - told)
    return _Images(found, _joined(features, scorer), bytes(marks))


def _shuffled_scores(
    rows: list[_Row], pictures: list[_Image], images: Features, captions: Features
) -> NDArray[np.float32]:
    """Scores of the images with the captions of other pairs, `(pairs,)`; NaN if there is no other pair."""
    partners = shuffled_partners([picture.hash for picture in pictures], [pair.caption for pair in rows])
    scores = np.full(len(rows), np.nan, dtype=np.float32)
    paired = np.flatnonzero(partners >= 0)
    scores[paired] = np.einsum("pd,pd->p", images[paired], captions[partners[paired]])
    return scores


def _encode_captions(texts: Iterable[str], scorer: PairScorer, batch_size: int) -> _Captions:
    lengths = _token_counts(list(dict.fromkeys(texts)), scorer.tokenizer)
    # Captions beyond the model's maximum are all truncated to the same length.
    captions = sorted(lengths, key=lambda caption: min(lengths[caption], scorer.max_text_tokens))
    features = [
        scorer.text_features(captions[start : start + batch_size]) for start in range(0, len(captions), batch_size)
    ]
    rows = {caption: row for row, caption in enumerate(captions)}
    return _Captions(rows, [lengths[caption] for caption in captions], _joined(features, scorer))


def _token_counts(captions: list[str], tokenizer: Any) -> dict[str, int]:
    """The length of each caption in tokens, including special tokens, in the order of `captions`."""
    counts: dict[str, int] = {}
    for start in range(0, len(captions), CAPTIONS_AT_ONCE):
        some = captions[start : start + CAPTIONS_AT_ONCE]
        # Not verbose, to avoid warnings about captions longer than the model's maximum.
        encoded = tokenizer(some, truncation=False, padding=False, return_attention_mask=False, verbose=False)
        counts.update(zip(some, map(len, encoded["input_ids"]), strict=True))
    return counts


def _joined(features: list[Features], scorer: PairScorer) -> Features:
    # For a shard without features, only the model can tell their width.
    return np.concatenate(features) if features else scorer.text_features(["."])[:0]
