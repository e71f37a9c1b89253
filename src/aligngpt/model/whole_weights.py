"""Loads a model only if its files have all of its weights: transformers leaves what is missing random."""

from pathlib import Path
from typing import Any

from aligngpt.errors import AlignGPTError
from aligngpt.model.backbones import some


def load_whole(
    kind: Any,
    source: str | Path,
    what: str,
    error: type[AlignGPTError],
    *,
    may_lack: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """`kind.from_pretrained(source, **options)`, with no weight left random.

    Args:
        kind: a model class, or an auto class.
        source: folder or hub name.
        what: what the model is to the caller, for the message, as in `the model`.
        error: exception class to raise.
        may_lack: beginnings of the names of tensors that are not used.
        **options: for `from_pretrained`.

    Raises:
        AlignGPTError: of the class `error`: the files lack a tensor.
        OSError, ValueError, RuntimeError, SafetensorError: as `from_pretrained`.
    """
    model, found = kind.from_pretrained(source, output_loading_info=True, **options)
    missing = sorted(name for name in found["missing_keys"] if not name.startswith(may_lack))
    if missing:
        others = sorted(found["unexpected_keys"])
        instead = f", and has {some(others)} instead, which no part of the model is called" if others else ""
        raise error(
            f"{what} {source} has no weights for {some(missing)}{instead}; they would be left random. Save or download "
            "it again, with all files and the names of its own class"
        )
    return model
