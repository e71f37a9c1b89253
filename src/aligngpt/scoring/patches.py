"""Images as patches of any number (SigLIP 2 NaFlex), in one tensor per image like the pixels of other models.

Such an image processor returns, besides the patches, which of them are padding and the height and width of the grid of
patches. All of it follows from the patches and the grid, so an image is one tensor, `(patches + 1, values)`: its
patches, padded to the model's number, and a last row with the sides of the grid. Each side is written as two digits of
base 128, because bfloat16 holds whole numbers exactly only up to 256.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from PIL import Image
from torch import Tensor

GRIDS = "spatial_shapes"
BASE = 128


def takes_patches(forward: Any) -> bool:
    """Whether a method for image features takes patches and the sides of their grids."""
    return GRIDS in signature(forward).parameters


def pixels_of(image_processor: Any, images: Sequence[Image.Image]) -> Tensor:
    """The output of an image processor for RGB images, on the CPU.

    Returns:
        `(images, 3, height, width)`, or `(images, patches + 1, values)` from an image processor that makes patches.
    """
    found = image_processor(list(images), return_tensors="pt")
    pixels: Tensor = found["pixel_values"]
    if GRIDS not in found:
        return pixels
    grids = found[GRIDS]
    last = pixels.new_zeros(len(pixels), 1, pixels.shape[-1])
    last[:, 0, :4] = torch.stack([grids // BASE, grids % BASE], dim=-1).flatten(1).to(pixels.dtype)
    return torch.cat([pixels, last], dim=1)


def inputs_of_patches(pixels: Tensor) -> dict[str, Tensor]:
    """The model's inputs for images from `pixels_of`, `(images, patches + 1, values)`, that are patches."""
    patches, last = pixels[:, :-1], pixels[:, -1, :4]
    digits = last.reshape(-1, 2, 2).long()
    grids = digits[..., 0] * BASE + digits[..., 1]
    used = torch.arange(patches.shape[1], device=pixels.device) < grids.prod(dim=1, keepdim=True)
    return {"pixel_values": patches, "pixel_attention_mask": used.to(torch.int32), GRIDS: grids}
