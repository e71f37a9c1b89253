"""Trained and frozen parameters of a stage, and the precisions they are held in."""

from collections.abc import Sequence

import torch
from torch import nn

from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.training.recipe import Part, RecipeError
from aligngpt.training.setup.lora import MARK

LEVEL_TABLE = "model.alignment.levels"
NEW_PARTS: tuple[Part, ...] = ("projector", "level_table", "gate")
"""Parts that belong to neither backbone."""
LARGE, BLOCK_8BIT = 4096, 256
"""Parameters of at least `LARGE` weights, in whole blocks, have moments in 8 bits in torchao's optimisers."""
MIXING_MODES = ("adaptive", "local")
"""Modes of `alignment` that use the gate."""


def part_of(name: str) -> Part:
    """The part of the model that a parameter belongs to, by its name in `AlignGPTForConditionalGeneration`."""
    if name.startswith("model.vision_tower."):
        return "vision_tower"
    if name.startswith("model.multi_modal_projector."):
        return "projector"
    if name == LEVEL_TABLE:
        return "level_table"
    if name.startswith("model.alignment.gate."):
        return "gate"
    return "language_model"


def freeze_all_but(
    model: AlignGPTForConditionalGeneration,
    parts: Sequence[Part],
    *,
    vision_blocks: int | None = None,
    levels_given: bool = False,
) -> None:
    """Make `parts` trainable and freeze the rest. Parts that the model lacks (no alignment module) are ignored.

    If the language model has adapters, only these train. Parameters that the loss does not depend on stay frozen even
    if they are in `parts`: the vision tower after the feature layer, and the gate if no mix of levels is formed.
    Otherwise several processes would hang waiting for their gradients.

    Args:
        model: its parameters are changed in place.
        parts: the parts to train.
        vision_blocks: if the vision tower trains, train only this many of its blocks, the last of those in use; None
            trains the whole tower.
        levels_given: the level of each sample is given, as in pre-training, so that no gate runs.

    Raises:
        RecipeError: the tower has no list of blocks, or fewer blocks are in use; or nothing is left that trains.
    """
    wanted = set(parts)
    if levels_given or model.config.alignment not in MIXING_MODES:
        wanted.discard("gate")
    has_adapters = any(MARK in name for name, _ in model.named_parameters())
    last_blocks = None if vision_blocks is None else _last_blocks(model, vision_blocks)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        trains = part != "language_model" or not has_adapters or MARK in name
        if part == "vision_tower" and last_blocks is not None:
            trains = id(parameter) in last_blocks
        parameter.requires_grad_(part in wanted and trains)
    if "vision_tower" in wanted:
        _freeze_unused_of_tower(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError(
            f"nothing would train: with alignment {model.config.alignment}, the stage has no {' and no '.join(parts)}; "
            "name another part in train"
        )


def _freeze_unused_of_tower(model: AlignGPTForConditionalGeneration) -> None:
    """Freeze the parameters of a trainable tower that do not affect the features; autograd finds them in any tower."""
    trains = [one for one in model.model.vision_tower.parameters() if one.requires_grad]
    with torch.enable_grad():
        features = model.model.tower_features(model.model.blank_picture())
        gradients = torch.autograd.grad(features.float().sum(), trains, allow_unused=True)
    for parameter, gradient in zip(trains, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def _last_blocks(model: AlignGPTForConditionalGeneration, count: int) -> set[int]:
    """The `id` of each parameter in the last `count` blocks of the tower that affect the features.

    Blocks after the feature layer get no gradient and do not count.
    """
    tower = model.model.vision_tower
    depth = tower.config.num_hidden_layers
    blocks = next((one for one in tower.modules() if isinstance(one, nn.ModuleList) and len(one) == depth), None)
    if blocks is None:
        raise RecipeError(f"vision_blocks: {type(tower).__name__} has no list of {depth} blocks; remove vision_blocks")
    layers = model.config.vision_feature_layer
    # Hidden states are numbered from 0, the input of the first block, to `depth`.
    used = max(range(depth + 1)[layer] for layer in ([layers] if isinstance(layers, int) else layers))
    if count > used:
        raise RecipeError(f"vision_blocks is {count}, but {used} blocks of the vision tower are in use; lower it")
    return {id(parameter) for block in blocks[used - count : used] for parameter in block.parameters()}


def hold_frozen_in(model: AlignGPTForConditionalGeneration, dtype: torch.dtype) -> bool:
    """Convert the frozen parameters to `dtype` once, rather than in every forward pass; returns whether there are any.

    The stage must not save them as they are then. Buffers (rotary frequencies) keep their precision.
    """
    changed = False
    for parameter in model.parameters():
        # Weights in 4 bits are stored as bytes and must not be converted.
        if not parameter.requires_grad and parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
            changed = True
    return changed


def held_in_bfloat16(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is one of the large trained ones that `weight_precision: bfloat16` is about.

    Smaller ones stay in float32: they take no memory, and the optimiser keeps their moments in the precision of the
    parameter, which in bfloat16 would be too coarse for a decay rate such as 0.999.
    """
    count = parameter.numel()
    return parameter.requires_grad and part_of(name) not in NEW_PARTS and count >= LARGE and count % BLOCK_8BIT == 0


def hold_trained_in_bfloat16(model: AlignGPTForConditionalGeneration) -> None:
    """Convert the large trained parameters, see `held_in_bfloat16`, to bfloat16, in place."""
    for name, parameter in model.named_parameters():
        if held_in_bfloat16(name, parameter):
            parameter.data = parameter.data.to(torch.bfloat16)


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The trainable parameters, by name, on the CPU; tied ones once."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
