"""The operations of a training step by part, and the speed to expect, as lines of text before a run."""

from collections.abc import Iterable

import torch

from aligngpt.training.flops import PEAKS, ModelFlops, peak_of

EXPECTED = 0.4
"""Share of a card's peak that good training code reaches on packed rows."""
SHOWN = ("H200", "A100", "L40S", "RTX 4090")
"""Cards to give a speed for if that of this machine is not known."""


def flops_lines(
    model_flops: ModelFlops, rows: int, *, tokens: float, counted: float, images: float, device: torch.device
) -> tuple[str, ...]:
    """Operations of a step by part, and tokens per second at 40 % of the peak of this card, or of some others.

    Args:
        model_flops: of the model as it trains.
        rows: per step.
        tokens, counted, images: per row on average: tokens without padding, those that count in the loss, and images.
        device: that training runs on.
    """
    keys = torch.arange(1, max(1, round(tokens)) + 1)
    one = model_flops.of_batch(keys, round(counted), encoded=1, projected=1)
    row = one._replace(tower=images * one.tower, projector=images * one.projector)
    total = sum(row)
    parts = ", ".join(f"{name} {part / total:.1%}" for name, part in row._asdict().items())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    own = peak_of(name)
    cards: Iterable[tuple[str, float]] = [(name, own)] if own else [(card, PEAKS[card]) for card in SHOWN]
    speeds = ", ".join(f"{card} {EXPECTED * peak * len(keys) / total:,.0f}" for card, peak in cards)
    return (
        f"a step: {rows * total:.2e} floating-point operations ({parts})",
        f"tokens per second at {EXPECTED:.0%} of a card's peak in bfloat16: {speeds}",
    )
