"""Where the counted and the image tokens of a batch are, found on the CPU before the batch is on a GPU.

Indexing with a mask, or looking at a value, makes the CPU wait until the GPU has done everything before it, and the GPU
then waits for the CPU. A training step that is given a `Layout` needs neither.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from aligngpt.model.segments import Samples


class Layout:
    """The positions and counts that a training step needs, of a batch that has been checked.

    A plain class: torch's wrappers for several devices copy data classes and tuples among a model's arguments.

    Args:
        counted: positions in the flattened batch, `(counted,)`, whose next token counts in the loss.
        image_tokens: positions in the flattened batch of the image tokens, `(image tokens,)`.
        sample_of_image: the sample of each image, `(images,)`.
        has_image: whether each sample has an image, boolean `(samples,)`.
        with_image: number of samples with an image.
        images: number of images.
        keys_seen: number of tokens that each token without padding sees, itself included, `(tokens,)`; always on the
            CPU, to count operations.
    """

    def __init__(
        self,
        *,
        counted: Tensor,
        image_tokens: Tensor,
        sample_of_image: Tensor,
        has_image: Tensor,
        with_image: int,
        images: int,
        keys_seen: Tensor,
    ) -> None:
        self.counted = counted
        self.image_tokens = image_tokens
        self.sample_of_image = sample_of_image
        self.has_image = has_image
        self.with_image = with_image
        self.images = images
        self.keys_seen = keys_seen

    @property
    def tokens(self) -> int:
        """Number of tokens without padding."""
        return len(self.keys_seen)

    def without_targets(self) -> "Layout":
        """The layout of the same batch with no token that counts in the loss."""
        copy = self._with(lambda tensor: tensor)
        copy.counted = self.counted[:0]
        return copy

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Layout":
        """A copy whose tensors are on a device."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Layout":
        """A copy whose tensors are in pinned memory, as data loaders do before a copy that blocks nothing."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Layout":
        return Layout(
            counted=change(self.counted),
            image_tokens=change(self.image_tokens),
            sample_of_image=change(self.sample_of_image),
            has_image=change(self.has_image),
            with_image=self.with_image,
            images=self.images,
            keys_seen=self.keys_seen,
        )


def check_no_images(is_image: Tensor) -> None:
    """Check that a batch without images has no image tokens.

    Raises:
        ValueError: it has.
    """
    if not torch.compiler.is_compiling() and is_image.any():
        raise ValueError("the text contains <image> tokens but no pixel_values were given; pass the images as well")


def check_align(is_align: Tensor, is_image: Tensor, samples: Samples) -> None:
    """Check that every sample with an image has exactly one `<align>`.

    Raises:
        ValueError: one has none, or several.
    """
    if torch.compiler.is_compiling():
        return
    aligns = samples.sum_of(is_align.long())
    missing = (samples.sum_of(is_image.long()) > 0) & (aligns != 1)
    if missing.any():
        sample = int(missing.nonzero()[0])
        raise ValueError(
            f"sample {sample} of the batch has images and {int(aligns[sample])} <align> tokens, expected one right "
            "after BOS; prepare the inputs with AlignGPTProcessor, which inserts it"
        )
