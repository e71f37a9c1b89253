"""How the rows of a stage are put together: the collator, and what limits a micro-batch."""

import os
import tempfile

import torch

from aligngpt.data.batches.budget import TokenBudget
from aligngpt.data.batches.collate import Collator
from aligngpt.open_files import raise_limit
from aligngpt.training.recipe import RecipeError, StageRecipe

ROW_MULTIPLE = 256
"""Packed rows have a multiple of that many tokens on a GPU, if tokens limit a micro-batch: few lengths, for compiled
layers and for kernels that work in tiles."""

ENOUGH_FILES = 4096
"""Limit of open files that is enough for the batches that worker processes send: a step has some dozens of
micro-batches of eleven tensors, and a tensor is two open files while it is sent."""

LONGEST_FOLDER = 75
"""Bytes of the name of the temporary folder: that of a socket in it has 32 more, and 107 at most."""


def collators_of(
    stage: StageRecipe, pad_token_id: int, device: torch.device, *, packed: bool
) -> tuple[Collator, TokenBudget | None]:
    """The collator of a stage and, if tokens limit its micro-batches, what divides a step into them."""
    if stage.micro_batch_tokens is None:
        return Collator(pad_token_id, packed=packed), None
    # Without a GPU, filling up would only cost time.
    collator = Collator(pad_token_id, packed=packed, multiple=ROW_MULTIPLE if device.type == "cuda" else 1)
    return collator, TokenBudget(stage.micro_batch_tokens, collator)


def check_open_files(stage: StageRecipe) -> None:
    """Raise the limit of open files, and check that it is enough for what worker processes send.

    Raises:
        RecipeError: it is not, or the name of the temporary folder is too long for the sockets by which workers send:
            the main process would wait for ever for a batch that a worker cannot send.
    """
    limit = raise_limit()
    # With the other strategy, which macOS has, a tensor that is sent is a name and no open file.
    if not stage.workers or torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
        return
    if len(os.fsencode(temporary := tempfile.gettempdir())) > LONGEST_FOLDER:
        raise RecipeError(
            f"the name of the temporary folder {temporary} is longer than the {LONGEST_FOLDER} bytes that data loader "
            "workers can use; set TMPDIR to a shorter one, or set workers: 0"
        )
    if stage.micro_batch_tokens is not None and limit is not None and limit < ENOUGH_FILES:
        raise RecipeError(
            f"a process may have only {limit} files open here, too few for workers with micro_batch_tokens; raise the "
            f"limit (`ulimit -n {ENOUGH_FILES}`; in a container, when it is started), or set workers: 0"
        )


def rows_per_batch(stage: StageRecipe, devices: int) -> int:
    """Rows of a batch of the data loader: of a micro-batch or, if tokens limit those, of a step on one device."""
    if stage.micro_batch_tokens is not None:
        return max(1, stage.batch_size // devices)
    return stage.micro_batch_size or stage.batch_size
