"""Shared by all conversions: the result, and the checks that a source's files and weights must pass."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligngpt.model.backbones import BackboneError
from aligngpt.model.foreign.checkpoint_formats import LayoutError


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        layout: description of the source's layout.
        parameters: number of parameters of the model.
        fresh: names of weights that the source lacks and that were freshly initialised.
        chat_template: description of where the chat template came from.
        notes: one sentence per setting of the source that is not kept unchanged.
    """

    layout: str
    parameters: int
    fresh: tuple[str, ...]
    chat_template: str = ""
    notes: tuple[str, ...] = ()


def check_registers(source: Path, registers: int) -> None:
    """Refuse a vision tower with register tokens, which the original code and LLaVA treat differently."""
    if registers:
        raise LayoutError(
            f"the vision tower of {source} has {registers} register tokens; the original code and transformers' LLaVA "
            "keep them among the image tokens, aligngpt drops them, so such models cannot be converted either way"
        )


def check_weights(source: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that are missing, unknown or of a wrong shape; both mappings are from names to shapes."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not part of such a model" for name in found if name not in expected]
    problems += [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise LayoutError(f"{source} cannot be converted: {'; '.join(sorted(problems))}")


def read_config(source: Path) -> Mapping[str, Any]:
    """The `config.json` of a foreign folder."""
    path = source / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LayoutError(f"{path} cannot be read: {error.strerror}; give a model folder") from error
    except ValueError as error:
        raise LayoutError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise BackboneError(f"{path} must hold an object, found {type(content).__name__}")
    return content
