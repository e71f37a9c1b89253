"""The name under which a model's answers are kept: it differs between different weights, settings and precisions."""

import hashlib
import json

import torch

from aligngpt.inference.engine import Engine

PLAIN = "the model has no alignment module (`alignment: none`): it is evaluated as a plain LLaVA"


def identity_of(engine: Engine, name: str) -> str:
    """The name with a digest of everything that the answers depend on, and the precision.

    Args:
        engine: the model, loaded.
        name: what the user calls it.

    Returns:
        `name (16 hexadecimal digits, precision)`. The digits are of the weights' values, the configuration and the chat
        template, so a copy of a model has the same ones wherever it lies.
    """
    digest = hashlib.sha256()
    config = {key: value for key, value in engine.model.config.to_dict().items() if key not in NOT_OF_THE_MODEL}
    digest.update(json.dumps(_without_names(config), sort_keys=True, default=str).encode())
    digest.update(repr(engine.processor.tokenizer.chat_template).encode())
    for key, tensor in sorted(engine.model.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    precision = str(engine.model.dtype).removeprefix("torch.")
    return f"{name} ({digest.hexdigest()[:16]}, {precision})"


NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def _without_names(value: object) -> object:
    """Settings without those that do not change what the model computes, at every depth."""
    if isinstance(value, dict):
        return {key: _without_names(one) for key, one in value.items() if key not in NOT_OF_THE_MODEL}
    return value


def remarks_on(engine: Engine) -> list[str]:
    """What a reader of the model's figures has to know."""
    return [PLAIN] if engine.model.config.alignment == "none" else []
