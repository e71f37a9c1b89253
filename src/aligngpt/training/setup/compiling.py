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


def compile_layers(model: AlignGPTForConditionalGeneration, device: torch.device) -> None:
    """Compile each layer of the language model with torch, once for all lengths; parameter names do not change.

    Args:
        model: on any device.
        device: that it will run on.

    Raises:
        RecipeError: there is no compiler for the device, or the model has no list of layers.
    """
    check_compiler("compile", device, "disable compile")
    for layer in layers_of(model):
        layer.compile(dynamic=True)


def check_compiler(what: str, device: torch.device, otherwise: str) -> None:
    """Check that torch can compile for a device.

    Args:
        what: the setting that compiles, for the error message.
        device: that it compiles for: a CPU needs a C++ compiler of the system, and a GPU a C compiler, which builds
            what starts Triton's kernels.
        otherwise: the alternative to installing it, for the error message.

    Raises:
        RecipeError: there is no such compiler.
    """
    language, variable, usual = ("C++", "CXX", ["g++"]) if device.type == "cpu" else ("C", "CC", ["gcc", "cc", "clang"])
    own = os.environ.get(variable)
    tried = [own] if own else usual
    if not any(map(shutil.which, tried)):
        raise RecipeError(
            f"{what} needs a {language} compiler, but {' or '.join(tried)} was not found; install it or {otherwise}"
        )
