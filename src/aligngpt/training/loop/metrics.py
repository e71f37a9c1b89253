"""Metrics over a log interval: throughput, padding, waiting time, gate weights and the loss per level."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.modeling import IGNORE_INDEX, AlignGPTOutput
from aligngpt.model.packing import pieces_of
from aligngpt.model.segments import Samples

Figures = dict[str, float]
COUNTS = ("seconds", "waited", "tokens", "places", "gated", "entropy")
"""The first entries of the sums; they are followed by the gate's weights, and the tokens and loss of each level."""


class StepMetrics:
    """Running sums over the micro-batches of a log interval; `compute` turns them into metrics and resets them.

    The sums are added up over all processes, so that the metrics cover all of them.

    Args:
        config: of the model being trained.
        add_up: sums a vector over all processes; a collective operation that every process must call.
    """

    def __init__(self, config: AlignGPTConfig, add_up: Callable[[Tensor], Tensor] = lambda sums: sums) -> None:
        self.config = config
        self.levels = config.num_alignment_levels
        self.add_up = add_up
        self._begin()

    def _begin(self) -> None:
        self.started = time.monotonic()
        self.sums = torch.zeros(len(COUNTS) + self.levels - 1 + 2 * self.levels, dtype=torch.float64)

    def wait(self, seconds: float) -> None:
        """Add time in which the model waited for data."""
        self.sums[COUNTS.index("waited")] += seconds

    def update(self, batch: dict[str, Any], output: AlignGPTOutput) -> None:
        """Add a micro-batch."""
        ids = batch["input_ids"]
        seen = {"tokens": _tokens(batch), "places": ids.numel()}
        gate = torch.zeros(self.levels - 1)
        tokens_of_level, loss_of_level = torch.zeros(2, self.levels)
        pieces = batch.get("pieces")
        samples = Samples.of_rows(ids) if pieces is None else Samples.of_pieces(pieces_of(pieces), ids.device)
        with_image = samples.sum_of((ids == self.config.align_token_index).long()) > 0
        if output.alignment_weights is not None:
            weights = output.alignment_weights.detach()[with_image].float()
            seen |= {"gated": len(weights), "entropy": torch.special.entr(weights).sum().item()}
            gate = weights.sum(dim=0).cpu()
        if output.token_losses is not None and (level := batch.get("alignment_level")) is not None:
            of_counted = samples.of_token[:, 1:][batch["labels"][:, 1:] != IGNORE_INDEX]
            # The batch has a placeholder level for samples without an image.
            levelled = with_image[of_counted]
            place = level[of_counted][levelled] - 1
            loss = output.token_losses[levelled].float()
            tokens_of_level = torch.bincount(place, minlength=self.levels).cpu()
            loss_of_level = torch.zeros(self.levels, device=loss.device).index_add(0, place, loss).cpu()
        counts = torch.tensor([seen.get(name, 0.0) for name in COUNTS], dtype=torch.float64)
        self.sums += torch.cat([counts, gate, tokens_of_level, loss_of_level])

    def state(self) -> list[float]:
        """The sums over all processes so far, for a checkpoint; every process must call it."""
        values: list[float] = self.add_up(self._timed()).tolist()
        return values

    def resume(self, state: list[float]) -> None:
        """Start from the sums of a checkpoint; with several processes, only one of them may call it."""
        self._begin()
        if len(state) == len(self.sums):
            self.sums += torch.tensor(state, dtype=torch.float64)

    def compute(self) -> Figures:
        """Metrics since the last call; every process must call it.

        Returns:
            `tokens_per_second`, over all processes; `padding`, the fraction of positions without a token; `waiting`,
            the fraction of the time without data; if a gate ran, `gate_1` … (mean weights of levels 1…N-1) and
            `gate_entropy` (mean, in nats); if levels were given, `loss_level_1` … for those that occurred. All are
            plain numbers, as trackers require.
        """
        processes = float(self.add_up(torch.ones(1, dtype=torch.float64)))
        sums = self.add_up(self._timed())
        seconds, waited, tokens, places, gated, entropy = sums[: len(COUNTS)].tolist()
        found: Figures = {
            "tokens_per_second": round(processes * tokens / seconds, 1),
            "padding": round(1 - tokens / max(places, 1), 4),
            "waiting": round(min(1.0, waited / seconds), 4),
        }
        gate, tokens_of_level, loss_of_level = sums[len(COUNTS) :].split([self.levels - 1, self.levels, self.levels])
        if gated:
            found |= {f"gate_{level}": round(one / gated, 4) for level, one in enumerate(gate.tolist(), start=1)}
            found["gate_entropy"] = round(entropy / gated, 4)
        of_levels = zip(tokens_of_level.tolist(), loss_of_level.tolist(), strict=True)
        for level, (counted, loss) in enumerate(of_levels, start=1):
            if counted:
                found[f"loss_level_{level}"] = round(loss / counted, 4)
        self._begin()
        return found

    def _timed(self) -> Tensor:
        sums = self.sums.clone()
        sums[COUNTS.index("seconds")] += max(time.monotonic() - self.started, 1e-9)
        return sums


def _tokens(batch: dict[str, Any]) -> int:
    """Number of tokens in a batch without padding, which attends to nothing, or only to itself."""
    mask = batch.get("attention_mask")
    if mask is None:
        return int(batch["input_ids"].numel())
    if mask.ndim == 2:
        return int(mask.sum())
    # Every token attends to the first one of its row; padding does so only at the first position of an all-padding row.
    return int(mask[:, 0, :, 0].sum())
