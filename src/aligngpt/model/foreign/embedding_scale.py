"""What Gemma multiplies by √d: before transformers 5.4 everything that its layers read, since then only words.

Image tokens and `<align>` are given to the layers as embeddings, so that before the same weights made them √d times
larger. A model of that time keeps its results if the weights that make these embeddings are multiplied by √d, and the
first layer of the gate, whose input is a product of image tokens and words, is divided by d.
"""

from collections.abc import Mapping
from typing import Any

from packaging.version import InvalidVersion, Version
from torch import Tensor

SCALED_WORDS_ONLY = Version("5.4.0")
"""The version of transformers that first multiplied only the words."""

MULTIPLIED_ALL = ("gemma", "gemma2")
"""Language models that multiplied everything before."""

_MULTIPLIED = ("model.multi_modal_projector.linear_2.", "model.alignment.levels")
_GATE = "model.alignment.gate.0.weight"


def embedding_scale(text: Mapping[str, Any], version: str | None = None) -> float:
    """The factor that a foreign model multiplies image tokens by and ours does not; 1 where there is none.

    Args:
        text: the configuration of its language model.
        version: of transformers, that it was saved with; None for the versions that the original code and LLaVA's use.
    """
    if text.get("model_type") not in MULTIPLIED_ALL or not _is_before(version):
        return 1.0
    return float(text["hidden_size"]) ** 0.5


def rescaled(name: str, tensor: Tensor, factor: float) -> Tensor:
    """The weight called `name`, by our names, of the model whose layers read image tokens `factor` times larger."""
    if factor == 1.0:
        return tensor
    if name.startswith(_MULTIPLIED):
        return (tensor.float() * factor).to(tensor.dtype)
    return (tensor.float() / factor**2).to(tensor.dtype) if name == _GATE else tensor


def _is_before(version: str | None) -> bool:
    try:
        return version is None or Version(version) < SCALED_WORDS_ONLY
    except InvalidVersion:
        return True
