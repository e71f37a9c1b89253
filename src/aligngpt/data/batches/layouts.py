"""The layout of a collated batch, for a training step that does not wait for the GPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aligngpt.data.batches.examples import Row
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.layout import Layout, check_align, check_no_images
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.model.segments import Samples, sample_of_image


@dataclass(frozen=True)
class WithLayout:
    """A collator that adds to each batch its `layout`, see `layout_of`.

    Args:
        collate: the collator.
        config: of the model.
    """

    collate: Callable[[Sequence[Row]], dict[str, Any]]
    config: AlignGPTConfig

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The batch of `collate`, with its layout."""
        batch = self.collate(rows)
        return batch | {"layout": layout_of(batch, self.config)}


def layout_of(batch: dict[str, Any], config: AlignGPTConfig) -> Layout:
    """The layout of a batch of a `Collator`; the model then makes none of the checks made here.

    Args:
        batch: with its tensors on the CPU; on a GPU this waits for it several times.
        config: of the model.

    Raises:
        ValueError: the image tokens do not match the images, a sample with images does not have exactly one `<align>`,
            or a placeholder is to be predicted.
    """
    ids, labels = batch["input_ids"], batch["labels"]
    pieces = batch.get("pieces")
    samples = Samples.of_rows(ids) if pieces is None else Samples.of_pieces(pieces)
    is_image = ids == config.image_token_index
    image_tokens = is_image.flatten().nonzero().squeeze(1)
    images = _images(batch)
    if not images:
        check_no_images(is_image)
    elif len(image_tokens) == 0 or len(image_tokens) % images:
        raise ValueError(
            f"the batch has {images} images and {len(image_tokens)} <image> tokens, expected the same number for each "
            "image; prepare the inputs with AlignGPTProcessor, which inserts them"
        )
    if config.alignment != "none":
        check_align(ids == config.align_token_index, is_image, samples)
    if torch.isin(labels, torch.tensor(config.placeholder_ids, device=labels.device)).any():
        raise ValueError(
            f"the labels contain <image> or <align>, which are never an answer; set labels to {IGNORE_INDEX} at the "
            f"token ids {', '.join(map(str, config.placeholder_ids))}"
        )
    next_counts = torch.nn.functional.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1))
    has_image = samples.sum_of(is_image.long()) > 0
    return Layout(
        counted=next_counts.flatten().nonzero().squeeze(1),
        image_tokens=image_tokens,
        sample_of_image=sample_of_image(is_image, images, samples) if images else image_tokens,
        has_image=has_image,
        with_image=int(has_image.sum()),
        images=images,
        keys_seen=_keys_seen(batch).cpu(),
    )


def _images(batch: dict[str, Any]) -> int:
    # An image that several samples share is then among the pixel values once.
    if keys := batch.get("feature_keys"):
        return len(keys)
    return sum(len(batch[name]) for name in ("pixel_values", "vision_features") if name in batch)


def _keys_seen(batch: dict[str, Any]) -> Tensor:
    """Number of tokens that each token of a batch sees, `(tokens,)`; padding is left out."""
    if (pieces := batch.get("pieces")) is not None:
        return torch.cat([torch.arange(piece.prefix, piece.seen) for piece in pieces.unpadded]) + 1
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if mask is None:
        mask = torch.ones_like(ids)
    if mask.ndim == 2:
        return mask.cumsum(dim=1)[mask != 0]
    # Every token attends to the first one of its row; padding does so only at the first position of an all-padding row.
    return mask[:, 0].sum(dim=-1)[mask[:, 0, :, 0]]
