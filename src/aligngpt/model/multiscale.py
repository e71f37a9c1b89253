"""Several scales of an image (S², arXiv 2403.13043): more detail from the same vision tower, in as many image tokens.

With scales 336, 672, 1008 the image is resized to each and cut into 1, 4 and 9 squares of 336 px. The tower reads them
all; the features of a scale are reassembled and pooled to the grid of the smallest scale, and those of all scales are
concatenated along the channels. So P is that of the smallest scale, and the projector has a wider input.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def crops_per_image(scales: Sequence[int]) -> int:
    """Number of squares of the smallest scale that the tower reads per image."""
    return sum((scale // scales[0]) ** 2 for scale in scales)


def crops_of_scales(pixel_values: Tensor, scales: Sequence[int]) -> Tensor:
    """The squares that the tower reads: all images at the first scale, then all squares of the second, etc.

    Args:
        pixel_values: `(images, channels, height, width)`, of any size, usually the largest scale.
        scales: sides in pixels, ascending, multiples of the first.

    Returns:
        `(images · crops, channels, scales[0], scales[0])`.
    """
    return torch.cat([_split(_resized(pixel_values, scale), scale // scales[0]) for scale in scales])


def merge_scales(features: Tensor, scales: Sequence[int]) -> Tensor:
    """Merge the features of `crops_of_scales`, `(images · crops, P, hidden)` → `(images, P, scales · hidden)`."""
    images = len(features) // crops_per_image(scales)
    grid = math.isqrt(features.shape[1])
    maps, start = [], 0
    for scale in scales:
        splits = scale // scales[0]
        part = features[start : start + images * splits**2]
        start += len(part)
        whole = _joined(part.unflatten(1, (grid, grid)).permute(0, 3, 1, 2), splits)
        # The mean over the tokens that fall on one token of the smallest scale.
        maps.append(F.interpolate(whole.float(), size=(grid, grid), mode="area").to(features.dtype))
    return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)


def _resized(pixels: Tensor, side: int) -> Tensor:
    if pixels.shape[-2:] == (side, side):
        return pixels
    return F.interpolate(pixels.float(), size=(side, side), mode="bicubic").to(pixels.dtype)


def _split(pictures: Tensor, splits: int) -> Tensor:
    """`(images, channels, side, side)` → `(splits² · images, channels, side / splits, …)`, square by square."""
    rows = pictures.chunk(splits, dim=-2)
    return torch.cat([square for row in rows for square in row.chunk(splits, dim=-1)])


def _joined(squares: Tensor, splits: int) -> Tensor:
    """Inverse of `_split`."""
    parts = squares.chunk(splits**2)
    rows = [torch.cat(parts[row * splits : (row + 1) * splits], dim=-1) for row in range(splits)]
    return torch.cat(rows, dim=-2)
