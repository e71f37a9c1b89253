"""Estimate the memory of a stage on one device, and how many layers have to be recomputed for it to be enough."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from aligngpt.memory import available_memory
from aligngpt.model.loss import ROWS_AT_ONCE
from aligngpt.model.modeling import LOGIT_SETTINGS, AlignGPTForConditionalGeneration
from aligngpt.training.activation_memory import BFLOAT16, FLOAT32, NotEstimated, body_bytes, head_bytes, layer_bytes
from aligngpt.training.recipe import RecipeError, StageRecipe
from aligngpt.training.setup.checkpointing import recomputed_layers
from aligngpt.training.setup.freezing import held_in_bfloat16
from aligngpt.training.setup.parameter_summary import PartRow
from aligngpt.training.setup.quantization import SMALL_BYTES, quantizable

DEVICES = 8
"""Number of devices assumed for the memory estimate of a sharded model."""

STATE_BYTES = {
    "adamw": 2 * FLOAT32,
    "adamw_8bit": 2,
    "adamw_torch_8bit": 2,
    "muon": FLOAT32,
    "adafactor": 0,
    "sgd": FLOAT32,
}
"""Optimiser state in bytes per parameter, approximately: Muon keeps two moments for parameters that are not matrices,
Adafactor keeps row and column sums, and 8-bit moments have a scale per block."""

USABLE = 0.9
"""Fraction of a device's memory that the estimate may fill: the rest is for kernels, the tower and fragmentation."""


class MemoryPlan(NamedTuple):
    """Bytes on one device, if each device holds the whole model.

    Attributes:
        weights: parameters, in the precision they are held in while training.
        training: gradients, optimiser state and the low-precision copies that autocast makes.
        activations: tensors saved for the backward pass of the longest micro-batch.
    """

    weights: int
    training: int
    activations: int


class MemoryEstimate:
    """The memory of a stage, for any number of recomputed layers.

    Args:
        model: prepared by `freeze_all_but`, with or without values in its weights.
        parts: of the model.
        stage: its settings.
        row: tokens of the longest row, and the tokens in the loss.
        in_bfloat16: the precision of the computation.

    Attributes:
        share: fraction of the language model's layers that are recomputed with the stage's settings.
        without_layers: why the estimate lacks the activations of the layers; None if it has them.
    """

    def __init__(
        self,
        model: AlignGPTForConditionalGeneration,
        parts: Sequence[PartRow],
        stage: StageRecipe,
        row: tuple[int, float],
        *,
        in_bfloat16: bool,
    ) -> None:
        self.stage, self.model = stage, model
        config = model.config.get_text_config()
        length, counted = row
        # Layers built from the configuration have no adapters; trained layers need the same memory as ones with them.
        trains = stage.lora is not None or any(row.part == "language_model" and row.trained for row in parts)
        self.without_layers: str | None = None
        self._layer = 0.0
        try:
            self._layer = layer_bytes(config, length, trains=trains, in_bfloat16=in_bfloat16)
        except NotEstimated as error:
            self.without_layers = f"the activations of the language model's layers are not in the memory ({error})"
        self._read = length * int(config.hidden_size) * FLOAT32
        self._rows: float = stage.micro_batch_size or stage.batch_size
        self._limit = "micro_batch_size"
        if stage.micro_batch_tokens is not None:
            # A row that is longer than the limit gets a pass of its own.
            self._rows, self._limit = max(1, stage.micro_batch_tokens / length), "micro_batch_tokens"
        with_logits = self._rows * counted
        if _fuses_loss(model, stage):
            with_logits = min(with_logits, ROWS_AT_ONCE)
        self._head = with_logits * head_bytes(config.vocab_size)
        self._weights, self._training = _held(model, parts, stage, in_bfloat16=in_bfloat16)
        recomputed = recomputed_layers(model, stage.gradient_checkpointing)
        self.share = sum(recomputed) / len(recomputed)

    def plan(self, every: bool | int | None = None) -> MemoryPlan:
        """The memory if every n-th layer is recomputed; None for the stage's own setting.

        Raises:
            RecipeError: the language model can only recompute all layers or none.
        """
        recomputed = recomputed_layers(self.model, self.stage.gradient_checkpointing if every is None else every)
        body = self._rows * body_bytes(self._layer, self._read, recomputed)
        return MemoryPlan(self._weights, self._training, round(body + self._head))

    def largest_that_fits(self, limit: float) -> bool | int | None:
        """The `gradient_checkpointing` that recomputes the fewest layers within `limit` bytes; None if none does."""
        choices: list[tuple[int, int, bool | int]] = []
        for every in (False, True, *range(2, len(recomputed_layers(self.model, True)) + 1)):
            try:
                layers = sum(recomputed_layers(self.model, every))
            except RecipeError:  # All layers or none.
                break
            choices.append((layers, sum(self.plan(every)), every))
        fitting = [one for one in choices if one[1] <= limit]
        return min(fitting)[2] if fitting else None

    def advice(self, memory: int | None) -> str | None:
        """One sentence on the setting that fits a device of that many bytes; None if one of the two is unknown."""
        if memory is None or self.without_layers is not None:
            return None
        best = self.largest_that_fits(USABLE * memory)
        has = f"this device's {memory / 1e9:.1f} GB"
        if best is None:
            return (
                f"{has} are too few even with gradient_checkpointing: true; lower {self._limit} or max_length, or "
                "train adapters (lora)"
            )
        setting = str(best).lower() if isinstance(best, bool) else str(best)
        return f"of what fits {has}, gradient_checkpointing: {setting} recomputes the fewest layers"


def device_memory(device: torch.device) -> int | None:
    """Bytes of memory on a GPU, or of available main memory; None if the system does not report it.

    An Apple GPU uses main memory, of which Metal recommends a limit.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    available = available_memory()
    if device.type == "mps":
        recommended = int(torch.mps.recommended_max_memory())
        return recommended if available is None else min(available, recommended)
    return available


def sharded_note(memory: MemoryPlan, stage: StageRecipe, parts: Sequence[PartRow], *, in_bfloat16: bool) -> str:
    """A note on the memory per device if eight devices shard the model; each holds all of a frozen vision tower."""
    size = BFLOAT16 if in_bfloat16 else FLOAT32
    everywhere = sum(size * row.parameters for row in parts if row.part == "vision_tower" and not row.trained)
    gathered = stage.sharding == "gradients"
    weights = memory.weights if gathered else everywhere + (memory.weights - everywhere) / DEVICES
    held = (weights + memory.training / DEVICES) / 1e9
    return (
        f"sharding {stage.sharding}: each of {DEVICES} devices holds {held:.1f} GB of weights and training state, "
        f"{held + memory.activations / 1e9:.1f} GB with activations"
    )


def _fuses_loss(model: AlignGPTForConditionalGeneration, stage: StageRecipe) -> bool:
    """Whether the stage computes its loss in chunks of tokens, without the logits of all of them."""
    config = model.config.get_text_config()
    scales = any(getattr(config, name, None) for name in LOGIT_SETTINGS)
    return stage.sharding == "none" and type(model.lm_head) is nn.Linear and not scales


def _held(
    model: AlignGPTForConditionalGeneration, parts: Sequence[PartRow], stage: StageRecipe, *, in_bfloat16: bool
) -> tuple[int, int]:
    """Bytes of the weights; bytes of gradients, optimiser state and autocast's copies."""
    trained = sum(row.trained for row in parts)
    frozen = sum(row.parameters for row in parts) - trained
    low = 0
    if stage.weight_precision == "bfloat16":
        low = sum(one.numel() for name, one in model.named_parameters() if held_in_bfloat16(name, one))
    small = quantizable(model) if stage.lora is not None and stage.lora.bits is not None else 0
    # Gradients are held like their weights; autocast copies those that are not in bfloat16 yet.
    own = FLOAT32 * (trained - low) + BFLOAT16 * low
    copies = BFLOAT16 * (trained - low) if in_bfloat16 else 0
    frozen_bytes = BFLOAT16 if in_bfloat16 else FLOAT32
    return (
        round(own + frozen_bytes * (frozen - small) + SMALL_BYTES * small),
        own + STATE_BYTES[stage.optimizer] * trained + copies,
    )
