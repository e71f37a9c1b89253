"""Groups of pairs whose images are the same or nearly so."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

MOST_IMAGES = 200_000
"""Largest number of different image files to compare: all pairs of them are, which takes 2 · 10¹⁰ similarities."""

BLOCK = 2048

ROUNDING = 1e-5
"""How far single precision may leave the cosine of two equal images below 1."""


def near_duplicates(
    features: Tensor,
    cosine: float,
    advance: Callable[[int], None] = lambda _: None,
) -> NDArray[np.int64]:
    """Connected components of the images that have at least some cosine with each other.

    Two images are in one group if a chain of images leads from one to the other in which each has at least this cosine
    with the next. Every two images are compared, in blocks of `BLOCK`; a cosine that is less than `ROUNDING` too small
    is enough, so that 1 joins equal images.

    Args:
        features: image features of unit length, which rounding may have changed, `(images, dim)`.
        cosine: the smallest cosine of near-duplicates, -1…1.
        advance: called with the number of images compared with all later ones.

    Returns:
        The number of the first image of each image's group, `(images,)`.
    """
    count = len(features)
    groups = np.arange(count)
    for start in range(0, count, BLOCK):
        rows = F.normalize(features[start : start + BLOCK].float(), dim=1)
        for other in range(start, count, BLOCK):
            others = F.normalize(features[other : other + BLOCK].float(), dim=1)
            near = rows @ others.T >= cosine - ROUNDING
            first, second = (found.cpu().numpy() for found in torch.nonzero(near, as_tuple=True))
            _join(groups, first + start, second + other)
        advance(len(rows))
    return groups


def _join(groups: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
    """Join the groups of the images in `first` with those in `second`, in place.

    Each image points to the first one of its group. In every round, the later of two firsts is pointed to the earlier
    one; each round joins at least one group to another.
    """
    while True:
        one, other = groups[first], groups[second]
        differ = one != other
        if not differ.any():
            return
        first, second, one, other = first[differ], second[differ], one[differ], other[differ]
        np.minimum.at(groups, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(further := groups[groups], groups):
            groups[:] = further
