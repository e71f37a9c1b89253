"""Metrics over a log interval: throughput, padding, waiting time, gate weights and the loss per level."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aligngpt.data.batches.layouts import layout_of
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.modeling import AlignGPTOutput
from aligngpt.model.segments import Samples
from aligngpt.training.flops import ModelFlops

Figures = dict[str, float]
COUNTS = ("seconds", "waited", "tokens", "places", "flops", "gated", "entropy")
"""The first entries of the sums; they are followed by the gate's weights, and the tokens and loss of each level."""


class StepMetrics:
    """Running sums over the micro-batches of a log interval; `compute` turns them into metrics and resets them.

    The sums are added up over all processes, so that the metrics cover all of them. Those of the model's output stay on
    its device until then: reading them there and then would make every micro-batch wait for a GPU.

    Args:
        config: of the model being trained.
        add_up: sums a vector over all processes; a collective operation that every process must call.
        flops: of the model as it trains; None to leave out the metrics of its speed.
        peak: of the device, operations per second; None if it is not known.
    """

    def __init__(
        self,
        config: AlignGPTConfig,
        add_up: Callable[[Tensor], Tensor] = lambda sums: sums,
        *,
        flops: ModelFlops | None = None,
        peak: float | None = None,
    ) -> None:
        self.config = config
        self.flops, self.peak = flops, peak
        self.levels = config.num_alignment_levels
        self.add_up = add_up
        self._begin()

    def _begin(self) -> None:
        self.started = time.monotonic()
        self.sums = torch.zeros(len(COUNTS) + self.levels - 1 + 2 * self.levels, dtype=torch.float64)
        self.on_device: Tensor | None = None

    def wait(self, seconds: float) -> None:
        """Add time in which the model waited for data."""
        self._count("waited", seconds)

    def update(self, batch: dict[str, Any], output: AlignGPTOutput) -> None:
        """Add a micro-batch; one without a `layout` waits for the GPU that it is on."""
        ids = batch["input_ids"]
        layout = batch.get("layout") or layout_of(batch, self.config)
        self._count("tokens", layout.tokens)
        self._count("places", ids.numel())
        if self.flops is not None:
            encoded = len(batch.get("pixel_values", ()))
            counted = len(layout.counted)
            self._count(
                "flops", sum(self.flops.of_batch(layout.keys_seen, counted, encoded=encoded, projected=layout.images))
            )
        entropy = ids.new_zeros(1, dtype=torch.float32)
        gate = ids.new_zeros(self.levels - 1, dtype=torch.float32)
        tokens_of_level, loss_of_level = ids.new_zeros(2, self.levels, dtype=torch.float32)
        if output.alignment_weights is not None:
            self._count("gated", layout.with_image)
            # The weights of samples without an image are meaningless.
            weights = output.alignment_weights.detach().float().where(layout.has_image.unsqueeze(1), 0)
            entropy, gate = torch.special.entr(weights).sum().unsqueeze(0), weights.sum(dim=0)
        if output.token_losses is not None and (level := batch.get("alignment_level")) is not None:
            pieces = batch.get("pieces")
            samples = Samples.of_rows(ids) if pieces is None else Samples.of_pieces(pieces)
            of_counted = samples.of_token.flatten().index_select(0, layout.counted + 1)
            # The batch has a placeholder level for samples without an image.
            levelled = layout.has_image.index_select(0, of_counted)
            place = level.index_select(0, of_counted) - 1
            tokens_of_level = tokens_of_level.index_add(0, place, levelled.float())
            loss_of_level = loss_of_level.index_add(0, place, output.token_losses.float().where(levelled, 0))
        found = torch.cat([entropy, gate, tokens_of_level, loss_of_level])
        # Apple's GPUs lack double precision.
        found = found.to(torch.float32 if found.device.type == "mps" else torch.float64)
        self.on_device = found if self.on_device is None else self.on_device + found

    def _count(self, name: str, count: float) -> None:
        self.sums[COUNTS.index(name)] += count

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
            the fraction of the time without data; `tflops_per_second`, 10¹² operations per second and device, see
            `aligngpt.training.flops`, and `mfu`, as a fraction of its peak, if that is known; if a gate ran,
            `gate_1` … (mean weights of levels 1…N-1) and `gate_entropy` (mean, in nats); if levels were given,
            `loss_level_1` … for those that occurred. All are plain numbers, as trackers require.
        """
        processes = float(self.add_up(torch.ones(1, dtype=torch.float64)))
        sums = self.add_up(self._timed())
        seconds, waited, tokens, places, flops, gated, entropy = sums[: len(COUNTS)].tolist()
        found: Figures = {
            "tokens_per_second": round(processes * tokens / seconds, 1),
            "padding": round(1 - tokens / max(places, 1), 4),
            "waiting": round(min(1.0, waited / seconds), 4),
        }
        if self.flops is not None:
            found["tflops_per_second"] = float(f"{flops / seconds / 1e12:.4g}")
            if self.peak is not None:
                found["mfu"] = round(flops / seconds / self.peak, 4)
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
        if self.on_device is not None:
            sums[COUNTS.index("entropy") :] += self.on_device.cpu()
        return sums
