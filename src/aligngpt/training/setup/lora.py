"""Low-rank adapters (arXiv 2106.09685) in the language model: fewer parameters to train and to save in checkpoints.

The adapters are peft's. When the stage ends they are merged into the weights, which gives an ordinary model, or they
are written to a folder of their own, see `aligngpt.model.adapters`.
"""

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from aligngpt.model.language_models import note_stacked_weights
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.training.distributed.processes import is_main_process
from aligngpt.training.recipe import LoraRecipe

MARK = ".lora_"
"""Part of the name of every adapter parameter."""


def add_lora(model: AlignGPTForConditionalGeneration, settings: LoraRecipe, *, seed: int) -> None:
    """Add an adapter to each linear layer of the language model except its head; the outputs do not change.

    A note is printed if many of its weights are in no linear layer, as in a mixture of experts.

    Args:
        model: gets the adapters, in place; its vision tower, projector and gate get none.
        settings: rank, scale and dropout; `bits` is only named in the note.
        seed: for the initialisation of the adapters.
    """
    body = model.model.language_model
    if is_main_process():
        note_stacked_weights(body, "get no adapters" if settings.bits is None else "get no adapters and stay whole")
    names = [name for name, module in body.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[f"model.language_model.{name}" for name in names],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)


def merge_lora(model: AlignGPTForConditionalGeneration) -> None:
    """Merge the adapters into their base weights and remove them; does nothing if there are none."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layer.get_base_layer())
