"""How the rows of a stage are put together: the collator, and what limits a micro-batch."""

import torch

from aligngpt.data.batches.budget import TokenBudget
from aligngpt.data.batches.collate import Collator
from aligngpt.training.recipe import StageRecipe

ROW_MULTIPLE = 256
"""Packed rows have a multiple of so many tokens on a GPU, if tokens limit a micro-batch: few lengths, for compiled
layers and for kernels that work in tiles."""


def collators_of(
    stage: StageRecipe, pad_token_id: int, device: torch.device, *, packed: bool
) -> tuple[Collator, TokenBudget | None]:
    """The collator of a stage and, if tokens limit its micro-batches, what divides a step into them."""
    if stage.micro_batch_tokens is None:
        return Collator(pad_token_id, packed=packed), None
    # Without a GPU, filling up would only cost time.
    collator = Collator(pad_token_id, packed=packed, multiple=ROW_MULTIPLE if device.type == "cuda" else 1)
    return collator, TokenBudget(stage.micro_batch_tokens, collator)


def rows_per_batch(stage: StageRecipe, devices: int) -> int:
    """Rows of a batch of the data loader: of a micro-batch or, if tokens limit those, of a step on one device."""
    if stage.micro_batch_tokens is not None:
        return max(1, stage.batch_size // devices)
    return stage.micro_batch_size or stage.batch_size
