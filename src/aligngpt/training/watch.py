"""What is seen of a run between two lines of its metrics: speed, padding, waiting, the gate, the loss of each level."""

import time
from typing import Any

import torch
from torch import Tensor

from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.modeling import IGNORED, AlignGPTOutput
from aligngpt.model.packing import pieces_of
from aligngpt.model.placeholders import Samples

Figures = dict[str, float]


class Watch:
    """Counts what passes by; `figures` gives the numbers since it was last asked.

    Args:
        config: of the model that trains.
    """

    def __init__(self, config: AlignGPTConfig) -> None:
        self.config = config
        self._begin()

    def _begin(self) -> None:
        self.started = time.monotonic()
        self.tokens = self.places = 0
        self.waited = 0.0
        self.gate: list[Tensor] = []
        self.levels: list[Tensor] = []
        self.losses: list[Tensor] = []

    def wait(self, seconds: float) -> None:
        """The model had to wait so long for data."""
        self.waited += seconds

    def see(self, batch: dict[str, Any], output: AlignGPTOutput) -> None:
        """A micro-batch was computed."""
        ids = batch["input_ids"]
        self.places += ids.numel()
        self.tokens += _tokens(batch)
        pieces = batch.get("pieces")
        samples = Samples.of_rows(ids) if pieces is None else Samples.of_pieces(pieces_of(pieces), ids.device)
        with_image = samples.sum_of((ids == self.config.align_token_index).long()) > 0
        if output.alignment_weights is not None:
            self.gate.append(output.alignment_weights.detach()[with_image].float())
        if output.token_losses is not None and (level := batch.get("alignment_level")) is not None:
            of_counted = samples.of_token[:, 1:][batch["labels"][:, 1:] != IGNORED]
            # What stands for the level of a sample without an image is none.
            levelled = with_image[of_counted]
            self.levels.append(level[of_counted][levelled])
            self.losses.append(output.token_losses[levelled])

    def figures(self) -> Figures:
        """Numbers since the last call.

        Returns:
            `tokens_per_second`; `padding`, the share of places that hold no token; `waiting`, the share of the time
            without data; where a gate ran, `gate_1` … (mean weights of levels 1…N-1) and `gate_entropy` (mean, in
            nats); where levels were given, `loss_level_1` … of those that occurred. Each a number, as trackers want.
        """
        seconds = max(time.monotonic() - self.started, 1e-9)
        found: Figures = {
            "tokens_per_second": round(self.tokens / seconds, 1),
            "padding": round(1 - self.tokens / max(self.places, 1), 4),
            "waiting": round(min(1.0, self.waited / seconds), 4),
        }
        if self.gate and len(weights := torch.cat(self.gate)):
            means = weights.mean(dim=0).tolist()
            found |= {f"gate_{level}": round(value, 4) for level, value in enumerate(means, start=1)}
            found["gate_entropy"] = round(torch.special.entr(weights).sum(dim=-1).mean().item(), 4)
        if self.levels:
            found |= _means(torch.cat(self.levels), torch.cat(self.losses))
        self._begin()
        return found


def _tokens(batch: dict[str, Any]) -> int:
    """Tokens of a batch, padding left out: it sees nothing, or only itself."""
    mask = batch.get("attention_mask")
    if mask is None:
        return int(batch["input_ids"].numel())
    if mask.ndim == 2:
        return int(mask.sum())
    # Every token sees the first one of its row; of padding only the first place does, where a row is nothing else.
    return int(mask[:, 0, :, 0].sum())


def _means(levels: Tensor, losses: Tensor) -> Figures:
    count = torch.bincount(levels)
    total = torch.zeros(len(count), device=losses.device).index_add(0, levels, losses.float())
    found = count.nonzero().flatten().tolist()
    return {f"loss_level_{level}": round((total[level] / count[level]).item(), 4) for level in found}
