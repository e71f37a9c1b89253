"""Optimiser steps of a model of 1.2B: padded rows, one sample each, then packed rows in each way.

All sides are our model, so that they differ by the layout of their rows alone. They run one after another, each alone
on the device, on the same samples from the same weights; a step includes making its batches and moving them there.
Weights and moments are float32, products bfloat16 by autocast. Comparing losses finds only what is grossly wrong: at
random weights they hardly depend on what attention sees. Whether a way learns the same is what `equality` asks.
"""

import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import training
from torch import Tensor

from aligngpt.model.packing.pieces import Way
from aligngpt.training.setup.compiling import compile_layers
from gpu_parts import flops
from gpu_parts.attention import ways_on
from gpu_parts.machine import datasheet
from gpu_parts.run import Run, free, peak_gib, shown

VIT_L = {
    **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    **{"image_size": 336, "patch_size": 14},
}
LLAMA_1B = {
    **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "vocab_size": 32_000},
}
TINY = dataclasses.replace(training.SIZES["tiny"], samples=16, micro_batch=8)
STEPS, UNTIMED = 5, 2
Layout = Way | Literal["padded"]
SHARES = (1, 10)
"""Questions that may share a row: one, as in padded rows, then ten, which share the tokens of their picture."""
LOSS_DIFFERS = 0.01


@dataclass
class Shared:
    """What sides have in common.

    Attributes:
        size: shape of the model.
        weights: of the first side, on the CPU; all others begin with them.
        losses: of the padded side's steps.
    """

    size: training.Size
    weights: dict[str, Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


def training_speed(run: Run) -> None:
    """Measure every side; ways that were refused before are left out, compiled layers come last."""
    shared = Shared(TINY if run.rehearse else training.Size(LLAMA_1B, VIT_L, 64, 8))
    ways = ways_on(run)
    sides: list[tuple[Layout, int, bool]] = [("padded", 1, False)]
    sides += [(way, share, False) for share in SHARES for way in ways]
    if not run.rehearse:
        sides += [(ways[0], SHARES[-1], True)]
    for layout, share, compiled in sides:
        label = f"{layout}, {share} a row{', compiled' if compiled else ''}"
        if layout != "padded" and layout in run.refused:
            run.remark(f"{label}: left out, {run.refused[layout]}")
        elif not run.left(60 if compiled else 25):
            run.remark(f"{label}: left out, no time")
        else:
            run.attempt(label, partial(_measure, run, shared, layout, share, compiled))
        free(run)


def _measure(run: Run, shared: Shared, layout: Layout, share: int, compiled: bool) -> None:
    work = training.draw_work(shared.size, 2, shared.size.samples, share)
    side = _side(run, shared, work, layout)
    if compiled:
        compile_layers(side.model, run.device)  # type: ignore[arg-type]
    losses, seconds = [], []
    for number in range(STEPS):
        started = run.wait()
        losses.append(side.step(number))
        seconds.append(run.wait() - started)
    counts = [_counts(side, shared.size, number) for number in range(UNTIMED, STEPS)]
    step = statistics.median(seconds[UNTIMED:])
    needed, tokens = (statistics.mean(column) for column in zip(*counts, strict=True))
    peak = datasheet(run)
    if not shared.losses:
        shared.losses = losses if layout == "padded" else []
    differ = max((abs(one / other - 1) for one, other in zip(losses, shared.losses, strict=False)), default=None)
    run.add(
        layout=layout,
        questions_a_row=share,
        compiled=compiled,
        verified=layout in run.tried if layout != "padded" else None,
        step_seconds=step,
        all_seconds=seconds,
        tokens_a_step=tokens,
        tokens_s=tokens / step,
        samples_s=len(work.examples) / step,
        tflop_s=needed / step / 1e12,
        mfu=needed / step / peak if peak else None,
        of_measured_product=needed / step / run.peak if run.peak else None,
        peak_gib=peak_gib(run),
        losses=losses,
        losses_differ=differ,
    )
    if differ is not None and not differ <= LOSS_DIFFERS:
        raise ArithmeticError(f"its losses differ from those of padded rows by {shown(differ)}")


def _side(run: Run, shared: Shared, work: training.Work, layout: Layout) -> training.Side:
    """A side on the device; made there, since making 1.2B weights on a CPU takes a minute."""
    # What other sides and parts compiled would count towards torch's limit on kernels.
    torch.compiler.reset()
    dtype = torch.float32 if run.rehearse else torch.bfloat16
    with run.device:
        side = training.build_sides(work, run.device, dtype, ("ours",))["ours"]
    if not shared.weights:
        shared.weights = {key: tensor.cpu().clone() for key, tensor in side.model.state_dict().items()}
    side.model.load_state_dict(shared.weights)
    if layout == "padded":
        model: Any = side.model
        model.set_attn_implementation({"text_config": "sdpa"})
        return dataclasses.replace(side, batches=partial(training.padded_batches, work))

    def batches(number: int) -> Iterator[dict[str, Any]]:
        for batch in side.batches(number):
            given: dict[str, Any] = batch
            given["pieces"].way = layout
            yield given

    return dataclasses.replace(side, batches=batches)


def _counts(side: training.Side, size: training.Size, number: int) -> tuple[float, int]:
    counts = [flops.of_batch(size, batch) for batch in side.batches(number)]
    return sum(one for one, _ in counts), sum(tokens for _, tokens in counts)
