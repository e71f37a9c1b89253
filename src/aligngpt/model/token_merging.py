"""Fewer image tokens: neighbouring patches become one token with all their channels (pixel shuffle).

A square of `merge × merge` patches becomes one image token whose features are the patches' features one after another,
row by row. No information is lost, the projector's input is `merge²` times as wide, and the language model reads
`merge²` times fewer image tokens. As in InternVL (arXiv 2404.16821) and Idefics 3 (arXiv 2408.12637).
"""

import math

from torch import Tensor


def merged_tokens(patches: int, merge: int) -> int:
    """Number of image tokens of an image of `patches` patches.

    Raises:
        ValueError: the patches are not a square grid whose side is a multiple of `merge`.
    """
    side = math.isqrt(patches)
    if merge > 1 and (side * side != patches or side % merge):
        grid = f"a grid of {side} × {side} patches" if side * side == patches else f"{patches} patches, not a square"
        sides = [number for number in range(2, side + 1) if side % number == 0] if side * side == patches else []
        fitting = f"; {', '.join(map(str, sides))} would fit" if sides else ""
        raise ValueError(f"merge_image_tokens {merge} does not divide {grid}{fitting}")
    return patches // merge**2


def merge_tokens(features: Tensor, merge: int) -> Tensor:
    """Concatenate the features of each square of patches: `(images, P, width)` → `(images, P/m², m² · width)`.

    The tokens are in row-major order, and so are the patches within a token.
    """
    if merge == 1:
        return features
    side = math.isqrt(features.shape[1])
    squares = features.unflatten(1, (side // merge, merge, side // merge, merge))
    # From (row, row in square, column, column in square) to (row, column, row in square, column in square).
    return squares.transpose(2, 3).flatten(3).flatten(1, 2)
