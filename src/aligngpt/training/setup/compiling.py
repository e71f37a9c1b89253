"""The layers of the language model, and their compilation with torch."""

import os
import shutil

import torch
from torch import nn

from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.training.recipe import RecipeError


def layers_of(model: AlignGPTForConditionalGeneration) -> list[nn.Module]:
    """The layers of the language model: the longest `ModuleList` in it.

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
    """Compile each layer of the language model with torch, once for all lengths; parameter names do not change.

    Raises:
        RecipeError: the device is a CPU and there is no C++ compiler, or the model has no list of layers.
    """
    check_compiler("compile", model.device, "disable compile")
    for layer in layers_of(model):
        layer.compile(dynamic=True)


def check_compiler(what: str, device: torch.device, otherwise: str) -> None:
    """Check that torch can compile for a device.

    Args:
        what: the setting that compiles, for the error message.
        device: that it compiles for; only a CPU needs a compiler of the system.
        otherwise: the alternative to installing it, for the error message.

    Raises:
        RecipeError: the device is a CPU, and there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise RecipeError(f"{what} needs a C++ compiler, but {compiler} was not found; install it or {otherwise}")
