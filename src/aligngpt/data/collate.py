"""From training examples to a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aligngpt.data.dataset import Example
from aligngpt.model.modeling import IGNORED


@dataclass(frozen=True)
class Collator:
    """Examples to a batch, padded on the right.

    Args:
        pad_token_id: what fills `input_ids`; the attention mask is zero there.
    """

    pad_token_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `labels` `(batch, length)`; `pixel_values (images, channels, height, width)`
        where there are images; `alignment_level (batch,)` where the examples have levels.

        Raises:
            ValueError: some examples with images have a level and others have none.
        """
        length = max(len(example.input_ids) for example in examples)
        batch = {
            "input_ids": _padded([example.input_ids for example in examples], length, self.pad_token_id),
            "attention_mask": _padded([[1] * len(example.input_ids) for example in examples], length, 0),
            "labels": _padded([example.labels for example in examples], length, IGNORED),
        }
        pixels = [example.pixel_values for example in examples if example.pixel_values is not None]
        if pixels:
            batch["pixel_values"] = torch.cat(pixels)
            with_image = [example.level for example in examples if example.pixel_values is not None]
            if any(level is not None for level in with_image):
                if None in with_image:
                    raise ValueError("some samples have an alignment level and others have none")
                # Samples without an image have no <align> token: their level is never read.
                batch["alignment_level"] = torch.tensor([example.level or 1 for example in examples])
        return batch


def _padded(rows: Sequence[Sequence[int]], length: int, value: int) -> Tensor:
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])
