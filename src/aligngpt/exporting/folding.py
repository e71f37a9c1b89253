"""Folding: the alignment embedding as an ordinary row of the embedding table.

A plain LLaVA has no alignment module. With one embedding for every image and question (level k, or a fixed mix of
levels), the row of `<align>` in the embedding table can hold it. The gate cannot be folded: its mix depends on the
image and the question.
"""

import re
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from aligngpt.alignment.modes import AlignmentMode
from aligngpt.alignment.module import FIXED_MODES, AlignmentModule
from aligngpt.exporting.loading import ExportError
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.modeling import AlignGPTForConditionalGeneration

CHOICES = (
    "global (level N), average (level N plus the mean of the others), mean (the mean of all levels) "
    "or level:K (level K, 1…N)"
)
_LEVEL = re.compile(r"level:(\d+)")


@dataclass(frozen=True)
class Fold:
    """Which embedding replaces the alignment module: that of a level 1…N, or of a mode in `FIXED_MODES`."""

    choice: int | AlignmentMode

    def __str__(self) -> str:
        return f"level:{self.choice}" if isinstance(self.choice, int) else self.choice

    def embedding(self, alignment: AlignmentModule) -> Tensor:
        """The embedding, `(hidden)`."""
        if isinstance(self.choice, int):
            return alignment.levels[self.choice - 1]
        return alignment.fixed_embedding(self.choice)


def chosen_fold(wanted: str | None, config: AlignGPTConfig) -> Fold | None:
    """The fold that `--fold` names; None for a model without an alignment module.

    Args:
        wanted: `global`, `average`, `mean` or `level:K`; None for that of the model, if its embedding never changes.
        config: the model's configuration.

    Raises:
        ExportError: `wanted` is not one of these, has a level that the model lacks, or is missing for a model with a
            gate.
    """
    levels = config.num_alignment_levels
    if config.alignment == "none":
        if wanted is not None:
            raise ExportError(f"--fold {wanted}: the model has no alignment module to fold; leave --fold out")
        return None
    if wanted is None:
        if config.alignment not in FIXED_MODES:
            raise ExportError(
                f"the model forms a new alignment embedding for each image (alignment: {config.alignment}), which "
                f"other programs cannot; choose a fixed one with --fold: {CHOICES}, or run the model with "
                "aligngpt ask, aligngpt evaluate or as a library"
            )
        wanted = config.alignment
    if wanted == "global":
        return Fold(levels)
    if wanted in FIXED_MODES:
        return Fold(cast(AlignmentMode, wanted))
    if not (found := _LEVEL.fullmatch(wanted)):
        raise ExportError(f"--fold {wanted}: expected {CHOICES}")
    if not 1 <= int(found[1]) <= levels:
        raise ExportError(f"--fold {wanted}: the model has levels 1 to {levels}")
    return Fold(int(found[1]))


def fold(model: AlignGPTForConditionalGeneration, chosen: Fold | None) -> dict[str, Tensor]:
    """The weights of the plain LLaVA that answers like `model` with this alignment embedding.

    The embedding is written into the row of `<align>`. The head gets a matrix of its own, in which the rows of
    `<align>` and `<image>` are the mean of all other rows. Our model gives these two tokens probability zero. In the
    plain one their logit is the mean of the others', so they are never the most likely token, and in sampling never
    more likely than 1 / vocabulary.

    Args:
        model: unchanged by the call.
        chosen: from `chosen_fold`.

    Returns:
        Tensors by their names in `LlavaForConditionalGeneration`.

    Raises:
        ExportError: the language model changes embeddings after looking them up, other than by a constant factor.
    """
    state: dict[str, Tensor] = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith("model.alignment.")
    }
    table = model.get_input_embeddings()
    table_name = next(name for name, module in model.named_modules() if module is table)
    if chosen is not None:
        assert model.model.alignment is not None
        embedding = chosen.embedding(model.model.alignment).detach().to(table.weight.dtype)
        rows = state[f"{table_name}.weight"].clone()
        rows[model.config.align_token_index] = row_for(table, embedding)
        state[f"{table_name}.weight"] = rows
    head = model.lm_head.weight.detach().clone()
    others = torch.ones(len(head), dtype=torch.bool)
    others[model.config.placeholder_ids] = False
    head[model.config.placeholder_ids] = head[others].float().mean(dim=0).to(head.dtype)
    state["lm_head.weight"] = head
    return state


def row_for(table: Any, embedding: Tensor) -> Tensor:
    """The row of an embedding table that it looks up as `embedding (hidden)`: some tables multiply rows by a constant.

    Raises:
        ExportError: the table does something else.
    """
    scale = torch.as_tensor(getattr(table, "embed_scale", 1.0)).to(embedding)
    row = embedding / scale
    if not isinstance(table, nn.Embedding) or row.shape != table.weight.shape[1:]:
        raise ExportError(
            f"the language model's embedding table is a {type(table).__name__}, in which the alignment embedding "
            "cannot be written; run the model with aligngpt ask or as a library"
        )
    return row
