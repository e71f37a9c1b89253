"""The name under which a model's answers are kept: it differs between different weights, settings and precisions."""

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from aligngpt.alignment.module import is_as_drawn
from aligngpt.model.tensor_bytes import tensor_bytes

if TYPE_CHECKING:
    from aligngpt.inference.engine import Engine

PLAIN = "the model has no alignment module (`alignment: none`): it is evaluated as a plain LLaVA"
UNTRAINED = (
    "the alignment levels are as drawn at random, and each prompt with an image contains them: these are not the "
    "figures of the model that this one was converted from; train it first"
)


def identity_of(engine: "Engine", name: str) -> str:
    """The name with a digest of everything that the answers depend on, and the precision.

    Args:
        engine: the model, loaded.
        name: what the user calls it.

    Returns:
        `name (16 hexadecimal digits, precision)`. The digits are of the weights' values, the configuration, the
        settings of generation, the image processor, the tokenizer and the chat template, so a copy of a model has the
        same ones wherever it lies.
    """
    digest = hashlib.sha256()
    processor = engine.processor
    settings = [
        engine.model.config.to_dict(),
        engine.model.generation_config.to_dict(),
        processor.image_processor.to_dict(),
        _tokenizer_content(processor.tokenizer),
        [processor.chat_template, processor.tokenizer.chat_template],
    ]
    digest.update(json.dumps(_without_names(settings), sort_keys=True, default=str).encode())
    for key, tensor in sorted(engine.model.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor_bytes(tensor))
    precision = str(engine.model.dtype).removeprefix("torch.")
    return f"{name} ({digest.hexdigest()[:16]}, {precision})"


def without_name(identity: str) -> str:
    """The digits and the precision of what `identity_of` returned; any other text as it is.

    A model may be named in several ways, as `runs/m` and `./runs/m`, and keeps its answers.
    """
    found = _DIGITS.search(identity)
    return found[1] if found else identity


NOT_OF_THE_MODEL = (
    *("_name_or_path", "_commit_hash", "_from_model_config", "transformers_version", "dtype", "torch_dtype"),
    *("architectures", "processor_class"),
)
_DIGITS = re.compile(r" \(([0-9a-f]{16}, \w+)\)$")


def _without_names(value: object) -> object:
    """Settings without those that do not change what the model computes, at every depth."""
    if isinstance(value, dict):
        return {key: _without_names(one) for key, one in value.items() if key not in NOT_OF_THE_MODEL}
    if isinstance(value, list):
        return [_without_names(one) for one in value]
    return value


def _tokenizer_content(tokenizer: Any) -> list[Any]:
    """What decides how a tokenizer splits text, as JSON values."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = {} if backend is None else json.loads(backend.to_str())
    # Padding and truncation are set by each call.
    rules = {key: value for key, value in content.items() if key not in ("padding", "truncation")}
    return [rules or tokenizer.get_vocab(), tokenizer.special_tokens_map, tokenizer.padding_side]


def remarks_on(engine: "Engine") -> list[str]:
    """What a reader of the model's figures has to know."""
    if engine.model.config.alignment == "none":
        return [PLAIN]
    return [UNTRAINED] if is_as_drawn(engine.model.model.alignment.levels) else []
