"""How well scores tell the pairs of a source from shuffled ones.

While a shard is scored, each image is also scored with the caption of another pair of the shard. If the model
understands the images and captions, a pair's own score is usually the higher one. The measure is the area under the ROC
curve (AUC): the probability that the score of a random pair exceeds that of a random shuffled one, where a tie counts
half. It is 1 for perfect separation and 0.5 for scores that carry no information about the match.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aligngpt.scoring.score_files import SHUFFLED_FIELD, read_batches

BINS = 1 << 20
"""Number of equal bins in -1…1, the range of a cosine. Two scores in one bin, 2e-6 wide, count as equal, which matters
only if all scores lie within about 1e-4."""

PARTNERS_TRIED = 50
"""How many of the following pairs are tried: if all have the same image or caption, the pair gets no shuffled score."""

FEW_PAIRS, WEAK = 50, 0.6


def shuffled_partners(images: Sequence[object], captions: Sequence[object]) -> NDArray[np.int64]:
    """For each pair, the next pair with another image and another caption; after the last pair comes the first.

    A pair with the same image may have a right caption for it, as may one with the same caption.

    Args:
        images: identifies the image of each pair, `(pairs,)`.
        captions: identifies the caption of each pair, `(pairs,)`.

    Returns:
        Indices of the other pairs, `(pairs,)`; -1 if there is none within the next `PARTNERS_TRIED` pairs.
    """
    count = len(images)
    partners = np.full(count, -1, dtype=np.int64)
    for one in range(count):
        for step in range(1, min(PARTNERS_TRIED, count - 1) + 1):
            other = (one + step) % count
            if images[one] != images[other] and captions[one] != captions[other]:
                partners[one] = other
                break
    return partners


def separation(out: Path, shards: int) -> float | None:
    """The AUC of the scores of all parts against the shuffled ones; None if there are no shuffled scores.

    Args:
        out: folder of the scores, with the column `shuffled` in every part.
        shards: number of parts.

    Raises:
        ScoresError: a part is missing or damaged, or lacks a column.
    """
    own, shuffled = np.zeros(BINS, dtype=np.int64), np.zeros(BINS, dtype=np.int64)
    for batch in read_batches(out, shards, ("score", SHUFFLED_FIELD.name)):
        _count(own, batch["score"].to_numpy())
        _count(shuffled, batch[SHUFFLED_FIELD.name].drop_null().to_numpy())
    total = float(own.sum()) * float(shuffled.sum())
    if not total:
        return None
    lower = np.cumsum(shuffled) - shuffled
    return float(np.dot(own.astype(np.float64), lower + shuffled / 2) / total)


def separation_text(auc: float) -> str:
    """The AUC in words."""
    return f"the scores tell your pairs from shuffled ones in {auc:.1%} of the cases (AUC; 50% is guessing)"


def separation_warning(auc: float, pairs: int) -> str | None:
    """A warning if the scores hardly tell pairs from shuffled ones; None if they do, or if there are too few pairs.

    Args:
        auc: see `separation`, 0…1.
        pairs: number of scored pairs.
    """
    if auc >= WEAK or pairs < FEW_PAIRS:
        return None
    return (
        "the scores hardly tell your pairs from shuffled ones, so levels made from them would mean little: use a model "
        "that knows this kind of image and the language of the captions, and check that images and captions belong "
        "together"
    )


def _count(bins: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
    places = np.floor((scores.astype(np.float64) + 1) * (BINS / 2)).clip(0, BINS - 1).astype(np.int64)
    found, counts = np.unique(places, return_counts=True)
    bins[found] += counts
