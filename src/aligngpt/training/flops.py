"""Floating-point operations of a training step, and the share of a device's peak that they are (MFU).

A product of a token with a weight matrix takes two operations for each weight, a token's attention four for each key
and unit of width. The backward pass takes as many again for the gradient of each weight that trains, and as many for
the gradient of each input behind which something trains. Only what the result needs is counted: no padding, no layers
computed again, and none of the vision tower after the features (PaLM, arXiv 2204.02311, appendix B).
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.multiscale import crops_per_image

PEAKS = {
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Peak of products in bfloat16 without sparsity, operations per second, from NVIDIA's datasheets (for the consumer
cards, from the white papers of their architectures, with sums in float32). A name stands after those that begin with
it."""

OTHER_CARDS = re.compile(r"\b(MIG|Laptop)\b|\b(D|Ti|Max-Q)$")
"""In the name of a device that has less or more than the card it is named after, such as a slice of it."""


class Flops(NamedTuple):
    """Operations, forward and backward, by part of the model."""

    layers: float
    attention: float
    head: float
    tower: float
    projector: float


class ModelFlops(NamedTuple):
    """Operations of a model's parts, forward and backward, for one unit of what each part works on.

    Attributes:
        layers: per token, the matrices of the language model's layers.
        attention: per token and key that it sees: the layers of each window; the key None stands for no window.
        head: per token that counts in the loss.
        tower: per image.
        projector: per image.
    """

    layers: float
    attention: dict[int | None, float]
    head: float
    tower: float
    projector: float

    @classmethod
    def of(cls, model: AlignGPTForConditionalGeneration) -> "ModelFlops":
        """Count the operations of a model as it trains.

        Args:
            model: with what is frozen marked; parameters may lack values.
        """
        config = model.config
        language, projector, head = model.model.language_model, model.model.multi_modal_projector, model.lm_head
        tower_trains = _trains(model.model.vision_tower)
        table_trains = _trains(language.get_input_embeddings())
        flows = tower_trains or _trains(projector) or _trains(model.model.alignment) or table_trains
        text, of_layers, attention = config.get_text_config(), 0.0, dict[int | None, float]()
        width = text.num_attention_heads * _head_width(text) if getattr(text, "num_attention_heads", None) else 0
        for number, layer in enumerate(_layers_of(language)):
            trains = _trains(layer)
            of_layers += _matrices(layer, flows=flows, experts=_share_of_experts(text, number))
            if (window := _window(text, number)) != 0:
                attention[window] = attention.get(window, 0.0) + 4 * width * (3 if flows or trains else 1)
            flows = flows or trains
        return cls(
            layers=of_layers,
            attention=attention,
            head=2 * head.in_features * head.out_features * (1 + flows + head.weight.requires_grad),
            tower=_tower(model),
            projector=config.image_seq_length * _matrices(projector, flows=tower_trains),
        )

    def of_batch(self, keys_seen: Tensor, counted: int, *, encoded: int, projected: int) -> Flops:
        """Operations of a batch.

        Args:
            keys_seen: number of tokens that each token without padding sees, itself included, `(tokens,)`.
            counted: number of tokens that count in the loss.
            encoded: number of images that the vision tower reads.
            projected: number of images that the projector reads.
        """
        seen = {window: keys_seen if window is None else keys_seen.clamp(max=window) for window in self.attention}
        return Flops(
            layers=len(keys_seen) * self.layers,
            attention=sum(float(seen[window].sum()) * each for window, each in self.attention.items()),
            head=counted * self.head,
            tower=encoded * self.tower,
            projector=projected * self.projector,
        )


def peak_of(name: str) -> float | None:
    """Peak of a device by its name as CUDA tells it, operations per second; None if it is not known."""
    if OTHER_CARDS.search(name):
        return None
    return next((peak for card, peak in PEAKS.items() if re.search(rf"\b{card}\b", name)), None)


def peak_of_device(device: torch.device, *, in_bfloat16: bool) -> float | None:
    """Peak of the device that trains; None if it is not known, or for a computation in single precision."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" and in_bfloat16 else None


def _trains(part: nn.Module | None) -> bool:
    return part is not None and any(parameter.requires_grad for parameter in part.parameters())


def _layers_of(language: nn.Module) -> Sequence[nn.Module]:
    lists = [one for one in language.modules() if isinstance(one, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def _head_width(text: object) -> int:
    width: int | None = getattr(text, "head_dim", None)
    return width or text.hidden_size // text.num_attention_heads  # type: ignore[attr-defined]


def _window(text: object, layer: int) -> int | None:
    """The number of tokens that a layer sees; None for all, 0 if it has no attention."""
    kinds: Sequence[str] | None = getattr(text, "layer_types", None)
    window: int | None = getattr(text, "sliding_window", None) or None
    if not kinds:
        return window
    if kinds[layer] == "sliding_attention":
        return window
    return 0 if kinds[layer] in ("linear_attention", "conv", "mamba") else None


def _share_of_experts(text: object, layer: int) -> float:
    """The fraction of a layer's experts that a token is sent to; 0 without experts."""
    chosen, all_ = (_of_layer(text, name, layer) for name in ("num_experts_per_tok", "num_local_experts"))
    all_ = all_ or _of_layer(text, "num_experts", layer)
    return chosen / all_ if chosen and all_ else 0.0


def _of_layer(text: object, name: str, layer: int) -> int | None:
    """A setting that is one number for all layers or, as in Hunyuan-A13B, one for each."""
    found: int | Sequence[int] | None = getattr(text, name, None)
    return found[layer] if isinstance(found, Sequence) else found


def _matrices(part: nn.Module, *, flows: bool, experts: float = 0.0, units: float = 1) -> float:
    """Operations per token of the linear layers of a part.

    Args:
        part: of the model.
        flows: whether gradients are needed for its input.
        experts: fraction of the experts, whose matrices are parameters with three dimensions, that a token is sent to.
        units: number of tokens.
    """
    total = 0.0
    for name, module in part.named_modules():
        # The second matrix of an adapter follows the first, which trains.
        passes = 1 + (flows or ".lora_B" in name)
        if isinstance(module, (nn.Linear, Conv1D)):
            ins, outs = (
                (module.in_features, module.out_features) if isinstance(module, nn.Linear) else module.weight.shape
            )
            total += 2 * ins * outs * (passes + module.weight.requires_grad)
        elif experts:
            stacks = [one for one in module.parameters(recurse=False) if one.ndim == 3]
            total += sum(2 * experts * one.numel() * (passes + one.requires_grad) for one in stacks)
    return units * total


def _tower(model: AlignGPTForConditionalGeneration) -> float:
    """Operations of the vision tower for one image, up to the features."""
    config, tower = model.config, model.model.vision_tower
    crops = crops_per_image(config.image_scales) if config.image_scales else 1
    tokens = config.tower_tokens / crops
    depth = getattr(tower.config, "num_hidden_layers", None)
    blocks = next((one for one in tower.modules() if isinstance(one, nn.ModuleList) and len(one) == depth), None)
    if blocks is None or depth is None:
        # Of another architecture than a transformer: each weight is taken to act on each token.
        parameters = sum(parameter.numel() for parameter in tower.parameters())
        return 2 * config.tower_tokens * parameters * (3 if _trains(tower) else 1)
    chosen = config.vision_feature_layer
    # Hidden states are numbered from 0, the input of the first block, to `depth`.
    used = max(range(depth + 1)[layer] for layer in ([chosen] if isinstance(chosen, int) else chosen))
    patches = tokens - config.leading_tokens
    total, flows = _convolutions(_outside(tower, blocks), patches), _trains_outside(tower, blocks)
    for block in blocks[:used]:
        trains = _trains(block)
        total += _matrices(block, flows=flows, units=tokens)
        total += 4 * tower.config.hidden_size * tokens**2 * (3 if flows or trains else 1)
        flows = flows or trains
    return crops * total


def _outside(part: nn.Module, inner: nn.Module) -> Iterable[nn.Module]:
    inside = set(inner.modules())
    return [module for module in part.modules() if module not in inside]


def _trains_outside(tower: nn.Module, blocks: nn.Module) -> bool:
    """Whether anything before the blocks trains; what comes after them, and trains, does not affect the features."""
    own = (one for module in _outside(tower, blocks) for one in module.parameters(recurse=False))
    return any(parameter.requires_grad for parameter in own)


def _convolutions(modules: Iterable[nn.Module], patches: float) -> float:
    kernels = [module.weight for module in modules if isinstance(module, nn.Conv2d)]
    return sum(2 * kernel.numel() * patches * (1 + kernel.requires_grad) for kernel in kernels)
