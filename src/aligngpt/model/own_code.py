"""Refuses models that bring code of their own: this package never runs code from a model folder or the hub."""

from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from aligngpt.errors import AlignGPTError


def refuse_own_code(source: str | Path, what: str, error: type[AlignGPTError], *, unless_known: bool = False) -> None:
    """Refuse a model whose config.json names code of its own (`auto_map`), before anything else is read.

    transformers would ask on the terminal whether to run the code, and go on waiting where nobody can answer. It would
    also ask for a part (`text_config`) of a kind that it has no network for; others keep an unused `auto_map`.

    Args:
        source: folder or hub name; one without a readable config.json passes, and is left to the loading of it.
        what: what the model is to the caller, for the message, as in `the model`.
        error: exception class to raise.
        unless_known: let models pass whose `model_type` transformers has a class of its own for: many published
            models keep the code that they had before transformers knew them. Load them with
            `trust_remote_code=False`.

    Raises:
        AlignGPTError: of the class `error`: the model brings code of its own.
    """
    try:
        config, _ = PretrainedConfig.get_config_dict(source)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return
    if not isinstance(config, dict):
        return
    kind = config.get("model_type")
    if "auto_map" not in config or (unless_known and kind in CONFIG_MAPPING):
        kind = None if unless_known else _part_with_code(config)
        if kind is None:
            return
    advice = (
        "choose a model that transformers has a class for"
        if unless_known
        else "if its weights are an AlignGPT model's, remove auto_map from its config.json"
    )
    raise error(
        f"{what} {source} brings code of its own (auto_map in its config.json, model type {kind!r}), which is never "
        f"run here; {advice}"
    )


def _part_with_code(config: dict[str, Any]) -> str | None:
    """The kind of a part that names code and has no network in transformers, at any depth; None if there is none."""
    for part in config.values():
        if not isinstance(part, dict):
            continue
        kind = part.get("model_type")
        if "auto_map" in part and isinstance(kind, str) and kind not in MODEL_MAPPING_NAMES:
            return kind
        if (below := _part_with_code(part)) is not None:
            return below
    return None
