"""Where the placeholders `<align>` and `<image>` stand, and what follows from it."""

import torch
from torch import Tensor


def readable_text(
    is_align: Tensor, is_image: Tensor, attention_mask: object, instruction_mask: Tensor | None
) -> Tensor:
    """The text tokens the gate reads, boolean `(batch, length)`: after `<align>`, so neither BOS nor left padding."""
    readable = (is_align.cumsum(dim=-1) > 0) & ~is_align & ~is_image
    # A static cache brings masks of its own shape (several in a dictionary where layers differ), and no right padding.
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        readable = readable & (attention_mask != 0)
    if instruction_mask is not None:
        readable = readable & (instruction_mask != 0)
    return readable


def sample_of_image(is_image: Tensor, images: int) -> Tensor:
    """Which sample each image belongs to, `(images,)`, from where the image tokens `(batch, length)` stand."""
    per_image = is_image.sum() // images
    rows = torch.arange(len(is_image), device=is_image.device)
    return torch.repeat_interleave(rows, is_image.sum(dim=-1) // per_image, output_size=images)
