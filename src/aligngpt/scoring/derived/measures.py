"""Scores of pairs relative to other pairs, computed from embeddings of unit length."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROWS_AT_ONCE = 1024
"""Pairs compared with a batch at once; bounds the memory of the similarities."""


class Batch(NamedTuple):
    """A random batch of pairs.

    Attributes:
        numbers: the numbers of its pairs in the folder, ascending, `(batch,)`.
        images: their image features, `(batch, dim)`.
        captions: their caption features, `(batch, dim)`.
    """

    numbers: NDArray[np.int64]
    images: Tensor
    captions: Tensor


def batch_numbers(pairs: int, batch_size: int, batches: int, seed: int) -> list[NDArray[np.int64]]:
    """Numbers of the pairs of each random batch, ascending; a single batch of all pairs if they fit into one.

    Args:
        pairs: number of pairs.
        batch_size: pairs per batch.
        batches: number of batches, at least 1.
        seed: the same seed gives the same batches.
    """
    if pairs <= batch_size:
        return [np.arange(pairs)]
    random = np.random.default_rng(seed)
    return [np.sort(random.choice(pairs, batch_size, replace=False, shuffle=False)) for _ in range(batches)]


def negcliploss(
    images: Tensor, captions: Tensor, numbers: NDArray[np.int64], batches: Sequence[Batch], temperature: float
) -> NDArray[np.float32]:
    """The negative CLIP loss of each pair, averaged over random batches: its similarity minus a normaliser.

    For a pair with image v and caption t, a batch B that contains it and the temperature τ, it is

        v·t - τ/2 · (log Σ_{j in B} exp(v·t_j / τ) + log Σ_{j in B} exp(v_j·t / τ)),

    which is τ times the negative CLIP loss of the pair in this batch (Wang et al., "CLIPLoss and Norm-Based Data
    Selection Methods for Multimodal Contrastive Learning", arXiv 2405.19547, section 3). There, the data are divided
    into batches several times. Here, each pair is put into the same few random batches, in place of one of the others
    if it is not a member: the batch that a pair meets is as random, but all pairs need only these batches in memory.

    Args:
        images: image features of unit length, `(pairs, dim)`.
        captions: caption features of unit length, `(pairs, dim)`.
        numbers: the numbers of the pairs in the folder, `(pairs,)`.
        batches: the random batches, on the device of the features.
        temperature: τ; 0.01 in the paper.

    Returns:
        `(pairs,)`; at most 0, in the units of the similarity.
    """
    found = np.empty(len(numbers), dtype=np.float32)
    for start in range(0, len(numbers), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        v, t = images[some].float(), captions[some].float()
        own = (v * t).sum(1)
        total = torch.zeros_like(own)
        for batch in batches:
            column = _columns_of(numbers[some], batch.numbers)
            column_there, rows = torch.from_numpy(column).to(own.device), torch.arange(len(own), device=own.device)
            for ours, theirs in ((v, batch.captions), (t, batch.images)):
                logits = ours @ theirs.float().T
                # Half precision storage aside, this is the value that is there already if the pair is a member.
                logits[rows, column_there] = own
                total += torch.logsumexp(logits / temperature, dim=1)
        found[some] = (own - temperature / 2 * total / len(batches)).cpu().numpy()
    return found


def specificity(
    images: NDArray[np.float32], captions: NDArray[np.float32], image_sum: NDArray[np.float64], pairs: int
) -> NDArray[np.float32]:
    """How far the similarity of a caption to its own image exceeds its mean similarity to the images of all others.

    A caption that fits any image, such as "a photo", has a specificity near 0, even if its similarity is high. The mean
    over all other images equals the product with their mean, so no sample is drawn.

    Args:
        images: image features of unit length, `(rows, dim)`.
        captions: caption features of unit length, `(rows, dim)`.
        image_sum: sum of the image features of all pairs, `(dim,)`.
        pairs: number of all pairs, at least 2.

    Returns:
        `(rows,)`, -2…2.
    """
    own = np.einsum("pd,pd->p", images.astype(np.float64), captions.astype(np.float64))
    others = (captions.astype(np.float64) @ image_sum - own) / (pairs - 1)
    return (own - others).astype(np.float32)


def _columns_of(numbers: NDArray[np.int64], batch: NDArray[np.int64]) -> NDArray[np.int64]:
    """The column of each pair in a batch: its own if it is a member, else one that depends on its number."""
    places = np.searchsorted(batch, numbers).clip(max=len(batch) - 1)
    return np.where(batch[places] == numbers, places, numbers % len(batch))
