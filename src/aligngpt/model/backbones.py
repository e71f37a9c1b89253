"""What loading a vision tower and loading a language model have in common."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub
from aligngpt.model.own_code import refuse_own_code

LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)
"""What transformers raises for a model whose files are missing, damaged or hold values of a wrong kind."""


class BackboneError(AlignGPTError):
    """A backbone cannot be loaded or is of an unsupported kind; the message names it and says what to do."""


def load_config(source: str | Path, what: str) -> PretrainedConfig:
    """The configuration of a folder or hub name.

    Raises:
        BackboneError: it cannot be loaded; the message calls it `what`.
    """
    local_or_hub(source, f"the {what}", BackboneError)
    refuse_own_code(source, f"the {what}", BackboneError, unless_known=True)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise BackboneError(f"the {what} {source} cannot be loaded: {error}") from error


def load(kind: Any, source: str | Path, dtype: torch.dtype | str, **options: Any) -> tuple[Any, list[str]]:
    """A model, and the names of the tensors missing from the source, which are left random."""
    model, found = kind.from_pretrained(
        source, dtype=dtype, output_loading_info=True, trust_remote_code=False, **options
    )
    return model, sorted(found["missing_keys"])


def on_meta(kind: Any, config: PretrainedConfig, dtype: torch.dtype) -> Any:
    """A model whose parameters have shapes but no values."""
    with torch.device("meta"):
        return kind.from_config(config, dtype=dtype)


def network_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The network that AutoModel builds from a configuration; None if there is none.

    transformers leaves some networks that are parts of larger models (the vision tower of MetaCLIP 2) out of AutoModel.
    If their class has the name of the configuration, it is registered; this must happen before a model with such a part
    is built or loaded.
    """
    kind = type(config)
    if kind in MODEL_MAPPING:
        found: type[PreTrainedModel] = MODEL_MAPPING[kind]
        return found
    try:
        module = importlib.import_module(kind.__module__.replace(".configuration_", ".modeling_"))
    except ImportError:
        return None
    for suffix in ("Model", "Transformer"):
        own: Any = getattr(module, kind.__name__.removesuffix("Config") + suffix, None)
        if isinstance(own, type) and issubclass(own, PreTrainedModel) and getattr(own, "config_class", None) is kind:
            # Otherwise transformers silently registers nothing for a configuration of its own.
            AutoModel.register(kind, own, exist_ok=True)
            network: type[PreTrainedModel] = own
            return network
    return None


def name_of_part(model: nn.Module, kind: type[nn.Module]) -> str | None:
    """The name of a model's first module of a class, empty if it is the model itself; None if there is none."""
    return next((name for name, module in model.named_modules() if type(module) is kind), None)


def some(names: Sequence[str]) -> str:
    """Names for a message: all of a few, else the first three and how many more."""
    return f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 4 else ", ".join(names)
