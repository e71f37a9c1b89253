"""Makes the part of a shard whose images have been given to the model: encodes captions, computes scores, writes."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aligngpt.data.sources.base import Shard
from aligngpt.errors import AlignGPTError
from aligngpt.scoring.device_queue import ModelQueue
from aligngpt.scoring.encoders import Features, PairScorer, ScorerError
from aligngpt.scoring.preparation import Refused
from aligngpt.scoring.score_files import PartSummary, Reject, part_table, write_part
from aligngpt.scoring.separation import shuffled_partners
from aligngpt.scoring.shard_reading import Row, ShardReading

CAPTIONS_AT_ONCE = 1000
"""Number of captions tokenized together to count their tokens."""


class Stopped(AlignGPTError):
    """The job was interrupted while a part was being made."""


class EncodedImage(NamedTuple):
    """What is kept of an image given to the models; `row` is its row in the features."""

    hash: str
    width: int
    height: int
    row: int


class ShardImages(NamedTuple):
    """A shard whose images have all been given to the models.

    Attributes:
        reading: its records.
        found: the result for each image by its number.
        features: of each model, the batches of features of the distinct images, `(images, dim)`.
        marks: the concatenated marks of image files.
    """

    reading: ShardReading
    found: Sequence[EncodedImage | Refused]
    features: Sequence[Sequence[Future[Features]]]
    marks: bytes


class _Captions(NamedTuple):
    """The row of each distinct caption, their lengths in tokens, and their features, `(captions, dim)`."""

    rows: dict[str, int]
    lengths: list[int]
    features: Features


@dataclass(frozen=True)
class PartMaker:
    """Makes the parts of a job, one after the other: tokenizers do not allow several threads at once.

    Attributes:
        scorer, others, out, batch_size, embeddings, shuffled: see `score_shards`.
        models: runs batches of captions.
        stopping: when set, `make` ends before the next batch of captions.
    """

    scorer: PairScorer
    others: Mapping[str, PairScorer]
    out: Path
    batch_size: int
    embeddings: bool
    shuffled: bool
    models: ModelQueue
    stopping: threading.Event = field(default_factory=threading.Event)

    def make(self, images: ShardImages) -> PartSummary:
        """Wait for the features of a shard's images, encode its captions, and write its part.

        Raises:
            ScorerError: the model gives a score that is not finite.
            Stopped: `stopping` was set.
            OSError: the part cannot be written.
        """
        reading, found = images.reading, images.found
        rows = [pair for pair in reading.pairs if isinstance(found[pair.picture], EncodedImage)]
        rejects = [*reading.unusable]
        for pair in reading.pairs:
            if isinstance(refused := found[pair.picture], Refused):
                rejects.append(Reject(pair.record, pair.id, refused.reason, refused.detail))
        texts = [pair.caption for pair in rows]
        captions = self._captions(texts, self.scorer)
        pictures = [image for pair in rows if isinstance(image := found[pair.picture], EncodedImage)]
        in_rows = [picture.row for picture in pictures]
        of_images = [
            _joined([batch.result() for batch in batches], scorer)
            for batches, scorer in zip(images.features, (self.scorer, *self.others.values()), strict=True)
        ]
        features = (of_images[0][in_rows], captions.features[[captions.rows[text] for text in texts]])
        scores = _scores(*features, rows, reading.shard, self.scorer)
        more = {}
        for (column, other), pixels in zip(self.others.items(), of_images[1:], strict=True):
            its = self._captions(texts, other)
            its_features = its.features[[its.rows[text] for text in texts]]
            more[column] = _scores(pixels[in_rows], its_features, rows, reading.shard, other)
        table = part_table(
            record=[pair.record for pair in rows],
            id=[pair.id for pair in rows],
            score=scores,
            caption_tokens=[captions.lengths[captions.rows[pair.caption]] for pair in rows],
            size=[(picture.width, picture.height) for picture in pictures],
            image_hash=[picture.hash for picture in pictures],
            shuffled=_shuffled_scores(rows, pictures, *features) if self.shuffled else None,
            more=more,
            embeddings=features if self.embeddings else None,
        )
        rejects.sort(key=lambda reject: reject.record)
        return write_part(self.out, reading.shard.index, table, rejects, images.marks)

    def _captions(self, texts: Sequence[str], scorer: PairScorer) -> _Captions:
        lengths = _token_counts(list(dict.fromkeys(texts)), scorer.tokenizer)
        # Captions beyond the model's maximum are all truncated to the same length.
        captions = sorted(lengths, key=lambda caption: min(lengths[caption], scorer.max_text_tokens))
        features = self.models.texts(scorer, self._batches(captions))
        rows = {caption: row for row, caption in enumerate(captions)}
        return _Captions(rows, [lengths[caption] for caption in captions], _joined(features, scorer))

    def _batches(self, captions: Sequence[str]) -> Iterator[Sequence[str]]:
        for start in range(0, len(captions), self.batch_size):
            if self.stopping.is_set():
                raise Stopped("the scoring was interrupted; run the same command again to resume")
            yield captions[start : start + self.batch_size]


def _scores(
    images: Features, captions: Features, rows: Sequence[Row], shard: Shard, scorer: PairScorer
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
    rows: Sequence[Row], pictures: Sequence[EncodedImage], images: Features, captions: Features
) -> NDArray[np.float32]:
    """Scores of the images with the captions of other pairs, `(pairs,)`; NaN if there is no other pair."""
    partners = shuffled_partners([picture.hash for picture in pictures], [pair.caption for pair in rows])
    scores = np.full(len(rows), np.nan, dtype=np.float32)
    paired = np.flatnonzero(partners >= 0)
    scores[paired] = np.einsum("pd,pd->p", images[paired], captions[partners[paired]])
    return scores


def _token_counts(captions: list[str], tokenizer: Any) -> dict[str, int]:
    """The length of each caption in tokens, including special tokens, in the order of `captions`."""
    counts: dict[str, int] = {}
    for start in range(0, len(captions), CAPTIONS_AT_ONCE):
        some = captions[start : start + CAPTIONS_AT_ONCE]
        # Not verbose, to avoid warnings about captions longer than the model's maximum.
        encoded = tokenizer(some, truncation=False, padding=False, return_attention_mask=False, verbose=False)
        counts.update(zip(some, map(len, encoded["input_ids"]), strict=True))
    return counts


def _joined(features: Sequence[Features], scorer: PairScorer) -> Features:
    # For a shard without features, only the model can tell their width.
    return np.concatenate(features) if features else scorer.text_features(["."])[:0]
