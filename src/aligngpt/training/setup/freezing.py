"""What trains in a stage, what stays frozen, and the small file that pre-training leaves."""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.training.recipe import Part, RecipeError
from aligngpt.training.setup.lora import MARK

PRETRAINED_PARTS: tuple[Part, ...] = ("projector", "level_table")
PRETRAINED_FILE = "aligned.safetensors"
NEW_PARTS: tuple[Part, ...] = ("projector", "level_table", "gate")
"""Parts that neither backbone brings."""
MIXING_MODES = ("adaptive", "local")
"""Modes of `alignment` in which the gate has a part."""


def part_of(name: str) -> Part:
    """Which part of the model a parameter belongs to, by its name in `AlignGPTForConditionalGeneration`."""
    if name.startswith("model.vision_tower."):
        return "vision_tower"
    if name.startswith("model.multi_modal_projector."):
        return "projector"
    if name == "model.alignment.levels":
        return "level_table"
    if name.startswith("model.alignment.gate."):
        return "gate"
    return "language_model"


def freeze_all_but(
    model: AlignGPTForConditionalGeneration,
    parts: Iterable[Part],
    *,
    vision_blocks: int | None = None,
    levels_given: bool = False,
) -> None:
    """Let `parts` train and nothing else. Parts that the model does not have (no alignment module) are passed over.

    Of a language model with adapters, the adapters train. What the loss does not depend on stays frozen whatever
    `parts` says: the vision tower behind the layer whose features are used, the gate where no mix of levels is formed.
    Several processes would wait for its gradients for ever.

    Args:
        model: whose parameters are frozen or not.
        parts: that train.
        vision_blocks: of a vision tower that trains, only so many blocks do, the last ones that are used; all of it
            when None.
        levels_given: the level of each sample is given, as in pre-training, so that no gate runs.

    Raises:
        RecipeError: the tower has fewer blocks that are used.
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


def _freeze_unused_of_tower(model: AlignGPTForConditionalGeneration) -> None:
    """Freeze what of a tower that trains has no part in the features: found by asking autograd, for any tower."""
    trains = [one for one in model.model.vision_tower.parameters() if one.requires_grad]
    with torch.enable_grad():
        features = model.model.tower_features(model.model.blank_picture())
        gradients = torch.autograd.grad(features.float().sum(), trains, allow_unused=True)
    for parameter, gradient in zip(trains, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def _last_blocks(model: AlignGPTForConditionalGeneration, count: int) -> set[int]:
    """The `id` of each parameter in the last `count` blocks of the tower that the projector reads something of.

    Blocks behind the feature layer get no gradient; those do not count.
    """
    tower = model.model.vision_tower
    depth = tower.config.num_hidden_layers
    blocks = next((one for one in tower.modules() if isinstance(one, nn.ModuleList) and len(one) == depth), None)
    if blocks is None:
        raise RecipeError(f"vision_blocks: {type(tower).__name__} has no list of {depth} blocks; leave it out")
    layers = model.config.vision_feature_layer
    # Hidden states are numbered from 0, what goes into the first block, to `depth`.
    used = max(range(depth + 1)[layer] for layer in ([layers] if isinstance(layers, int) else layers))
    if count > used:
        raise RecipeError(f"vision_blocks is {count}, but {used} blocks of the vision tower are used; set it to less")
    return {id(parameter) for block in blocks[used - count : used] for parameter in block.parameters()}


def hold_frozen_in(model: AlignGPTForConditionalGeneration, dtype: torch.dtype) -> None:
    """Hold the parameters that do not train in `dtype`: converted once, not anew in every forward pass.

    Only for stages that do not save them. Buffers (rotary frequencies) keep their precision.
    """
    for parameter in model.parameters():
        # What is held in 4 bits is bytes, and stays so.
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def layers_of(model: AlignGPTForConditionalGeneration) -> list[nn.Module]:
    """The layers of the language model: the modules of the longest list in it.

    Raises:
        RecipeError: it has no list of layers.
    """
    lists = [one for one in model.model.language_model.modules() if isinstance(one, nn.ModuleList)]
    layers = max(lists, key=len, default=None)
    if not layers:
        kind = model.config.get_text_config().model_type
        raise RecipeError(f"the language model {kind} has no list of layers; set compile to false and sharding to none")
    return list(layers)


def compile_layers(model: AlignGPTForConditionalGeneration) -> None:
    """Let torch compile each layer of the language model, once for all lengths; names of parameters stay.

    Raises:
        RecipeError: the device is a CPU and there is no C++ compiler, or the model has no list of layers.
    """
    compiler = os.environ.get("CXX", "g++")
    if model.device.type == "cpu" and shutil.which(compiler) is None:
        raise RecipeError(f"compile needs a C++ compiler, and {compiler} is not there; install one, or set it to false")
    for layer in layers_of(model):
        layer.compile(dynamic=True)


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that train, by name, on the CPU; tied ones once."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def is_pretrained(name: str) -> bool:
    """Whether a parameter of this name is left by pre-training."""
    return part_of(name) in PRETRAINED_PARTS


def save_pretrained_parts(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Leave what pre-training made: projector and level table, in `folder/aligned.safetensors`.

    Args:
        tensors: by name, those that `is_pretrained`.
        folder: of the stage.
    """
    exact = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(folder / PRETRAINED_FILE, "wb") as file:
        file.write(save(exact, metadata={"format": "pt"}))


def load_pretrained_parts(model: AlignGPTForConditionalGeneration, folder: Path) -> None:
    """Take projector and level table from what `save_pretrained_parts` left.

    Raises:
        AlignGPTError: the file is missing, or its tensors do not fit this model.
    """
    path = folder / PRETRAINED_FILE
    if not path.is_file():
        raise AlignGPTError(
            f"there is no {path}, which pre-training leaves; run `aligngpt train` with `--stage pretrain` first"
        )
    expected = {name: tensor for name, tensor in model.named_parameters() if is_pretrained(name)}
    load_tensors(path, expected)


def load_tensors(path: Path, expected: dict[str, torch.Tensor] | dict[str, nn.Parameter]) -> None:
    """Fill the `expected` tensors from a safetensors file that holds exactly these.

    Raises:
        AlignGPTError: the file cannot be read, or names or shapes differ.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AlignGPTError(f"{path} cannot be read: {error}; run the stage that writes it again") from error
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not part of this model" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        raise AlignGPTError(f"{path} does not fit the model: {'; '.join(sorted(problems)[:10])}")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(found[name])
