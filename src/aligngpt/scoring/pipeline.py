"""Scores one shard: images are opened ahead of the model, and each distinct image and caption is encoded once.

Batches consist of the shard's distinct images, in order of first appearance, and of its distinct captions, shortest
first to reduce padding. So the batches, and with them the last digits of a score, depend on the shard alone: not on the
number of processes that open images, nor on where an earlier run was interrupted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from aligngpt.data.images.reference import Picture
from aligngpt.data.records.pairs import Pair, PairSource, Unusable
from aligngpt.data.sources.base import Shard
from aligngpt.scoring.batch_threads import BatchThreads
from aligngpt.scoring.encoders import Features, PairScorer, ScorerError
from aligngpt.scoring.missing_pictures import MissingPictures
from aligngpt.scoring.picture_workers import PictureWorkers, Refused
from aligngpt.scoring.score_files import PartSummary, Reject, part_table, write_part
from aligngpt.scoring.separation import shuffled_partners

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
    others: Mapping[str, PairScorer] = MappingProxyType({}),
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
        workers: made for `scorer` and `others`.
        others: more models that score the same pairs, by the name of their score's column. Each computes on the batches
            that it would have alone, so its scores are the same to the bit.
        embeddings: also store the features of `scorer`.
        shuffled: also score each image with the caption of another pair, see `aligngpt.scoring.separation`; with
            `scorer` only.
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
    images = _encode_images(reading, [scorer, *others.values()], batch_size, workers, advance, watch)
    rows = [pair for pair in reading.pairs if isinstance(images.found[pair.picture], _Image)]
    rejects = [*reading.unusable]
    for pair in reading.pairs:
        if isinstance(found := images.found[pair.picture], Refused):
            rejects.append(Reject(pair.record, pair.id, found.reason, found.detail))
    texts = [pair.caption for pair in rows]
    captions = _encode_captions(texts, scorer, batch_size)
    pictures = [found for pair in rows if isinstance(found := images.found[pair.picture], _Image)]
    in_rows = [picture.row for picture in pictures]
    features = (images.features[0][in_rows], captions.features[[captions.rows[text] for text in texts]])
    scores = _scores(*features, rows, shard, scorer)
    more = {}
    for (column, other), pixels in zip(others.items(), images.features[1:], strict=True):
        its = _encode_captions(texts, other, batch_size)
        more[column] = _scores(pixels[in_rows], its.features[[its.rows[text] for text in texts]], rows, shard, other)
    table = part_table(
        record=[pair.record for pair in rows],
        id=[pair.id for pair in rows],
        score=scores,
        caption_tokens=[captions.lengths[captions.rows[pair.caption]] for pair in rows],
        size=[(picture.width, picture.height) for picture in pictures],
        image_hash=[picture.hash for picture in pictures],
        shuffled=_shuffled_scores(rows, pictures, *features) if shuffled else None,
        more=more,
        embeddings=features if embeddings else None,
    )
    return write_part(out, shard.index, table, sorted(rejects, key=lambda reject: reject.record), images.marks)


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
    """The result for each image by its number, the features of the distinct images, `(images, dim)` of each model, and
    the concatenated marks of image files."""

    found: list[_Image | Refused]
    features: list[Features]
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
    scorers: Sequence[PairScorer],
    batch_size: int,
    workers: PictureWorkers,
    advance: Callable[[int], None],
    watch: MissingPictures | None,
) -> _Images:
    marks = bytearray()
    found: list[_Image | Refused] = []
    rows: dict[str, int] = {}
    waiting: list[tuple[NDArray[Any], ...]] = []
    taken = told = 0

    def submit(threads: BatchThreads, pictures: list[tuple[NDArray[Any], ...]]) -> None:
        for scorer, pixel_values, of_model in zip(
            scorers, workers.pixel_values_of, zip(*pictures, strict=True), strict=True
        ):
            threads.submit(partial(_features, scorer, pixel_values, of_model))

    # All models are on one device.
    with BatchThreads(scorers[0].device) as threads:
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
                    waiting.append((result.pixels, *result.more))
            if len(waiting) == batch_size:
                submit(threads, waiting)
                taken += batch_size
                waiting = []
            advance(reading.records - told)
            told = reading.records
        if waiting:
            submit(threads, waiting)
        features = threads.results()
    advance(reading.records - told)
    joined = [_joined(features[index :: len(scorers)], scorer) for index, scorer in enumerate(scorers)]
    return _Images(found, joined, bytes(marks))


def _features(
    scorer: PairScorer, pixel_values: Callable[[Sequence[NDArray[Any]]], Tensor], pictures: Sequence[NDArray[Any]]
) -> Features:
    return scorer.pixel_features(pixel_values(pictures))


def _scores(
    images: Features, captions: Features, rows: Sequence[_Row], shard: Shard, scorer: PairScorer
) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = np.einsum("pd,pd->p", images, captions)
    if not np.isfinite(scores).all():
        wrong = rows[int(np.argmin(np.isfinite(scores)))]
        raise ScorerError(
            f"the score of record {wrong.record} (id {wrong.id}) of {shard.name} is not a finite number; the weights "
            f"of the model {scorer.model.name_or_path} are damaged, or it needs float32 precision"
        )
    return scores


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
