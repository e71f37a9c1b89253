"""What follows from the positions of the placeholders `<align>` and `<image>`: readable text and image ownership.

`Samples` assigns each token to a sample: a sample is a row or, in a packed row, one of its segments.
"""

from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from aligngpt.model.packing.pieces import Pieces


class Samples(NamedTuple):
    """The number of samples, and the sample of each token, `(batch, length)`."""

    number: int
    of_token: Tensor

    @classmethod
    def of_rows(cls, tokens: Tensor) -> "Samples":
        """One sample per row; `tokens` has the shape `(batch, length, …)`."""
        batch, length = tokens.shape[:2]
        return cls(batch, torch.arange(batch, device=tokens.device).unsqueeze(1).expand(batch, length))

    @classmethod
    def of_pieces(cls, pieces: Pieces) -> "Samples":
        """The samples of a packed row."""
        return cls(pieces.samples, pieces.sample_of_token)

    def sum_of(self, values: Tensor) -> Tensor:
        """Per-token values `(batch, length)`, summed over each sample: `(number,)`."""
        return values.new_zeros(self.number).index_add(0, self.of_token.flatten(), values.flatten())


def readable_text(
    is_align: Tensor, is_image: Tensor, attention_mask: object, instruction_mask: Tensor | None, samples: Samples
) -> Tensor:
    """The text tokens the gate reads, boolean `(batch, length)`: after `<align>`, so neither BOS nor left padding."""
    length = is_align.shape[1]
    places = torch.arange(length, device=is_align.device).expand_as(is_align)
    # Without <align> nothing is read: it is treated as standing after everything.
    of_align = torch.where(is_align, places, length).flatten()
    first = of_align.new_full((samples.number,), length)
    first = first.scatter_reduce(0, samples.of_token.flatten(), of_align, "amin")
    readable = (places > first[samples.of_token]) & ~is_image
    # A static cache has masks of another shape (a dictionary of several if layers differ) and no right padding.
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        readable = readable & (attention_mask != 0)
    elif _has_branches(attention_mask, length):
        # Each token but padding attends to the first one of its row.
        readable = readable & attention_mask[:, 0, :, 0]
    if instruction_mask is not None:
        readable = readable & (instruction_mask != 0)
    return readable


def _has_branches(attention_mask: object, length: int) -> TypeGuard[Tensor]:
    """Whether a mask is that of padded rows with branches, boolean `(batch, 1, length, length)`."""
    return (
        isinstance(attention_mask, Tensor)
        and attention_mask.dtype == torch.bool
        and attention_mask.shape[-2:] == (length, length)
    )


def sample_of_image(is_image: Tensor, images: int, samples: Samples) -> Tensor:
    """The sample of each image, `(images,)`, from the positions of the image tokens `(batch, length)`."""
    per_image = is_image.sum() // images
    numbers = torch.arange(samples.number, device=is_image.device)
    return torch.repeat_interleave(numbers, samples.sum_of(is_image.long()) // per_image, output_size=images)
