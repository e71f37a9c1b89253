"""Loads the model to export in the precision of its files, and removes an earlier export only if it is one."""

from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from transformers import AutoConfig, AutoProcessor

from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub
from aligngpt.model.adapters import is_adapter, load_adapter
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor

NOTES_FILE = "export.json"
"""What the folder was made from, how, and what reads it; in every exported folder."""


class ExportError(AlignGPTError):
    """A model cannot be exported."""


class Loaded(NamedTuple):
    """A model on the CPU, in the precision of its files, and its processor."""

    model: AlignGPTForConditionalGeneration
    processor: AlignGPTProcessor


def load_model(source: str | Path, base: str | Path | None = None) -> Loaded:
    """Load a model folder, a hub name, or an adapter folder, which is merged with its base in memory.

    Raises:
        ExportError: the model cannot be loaded or is not an AlignGPT model, or `base` is given without an adapter.
        AdapterError: an adapter folder or its base cannot be used.
    """
    if is_adapter(source):
        return Loaded(*load_adapter(Path(source), base=base))
    if base is not None:
        raise ExportError(f"{source} is not an adapter folder and has no base; leave --base out")
    local_or_hub(source, "the model", ExportError, with_owner=True)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ExportError(
            f"the model {source} cannot be loaded: {str(error).rstrip('.')}. Give a model folder (with config.json) or "
            "a hub name"
        ) from error
    if not isinstance(config, AlignGPTConfig):
        raise ExportError(f"{source} is a {config.model_type!r} model, expected an AlignGPT model")
    if getattr(config, "quantization_config", None) is not None:
        raise ExportError(
            f"{source} stores quantised weights, which cannot be exported; export the model that they were made from"
        )
    try:
        processor = AutoProcessor.from_pretrained(source)
        model = AlignGPTForConditionalGeneration.from_pretrained(source, dtype="auto")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ExportError(
            f"the model {source} cannot be loaded: {str(error).rstrip('.')}. One of its files is missing or damaged; "
            "save or download the model again"
        ) from error
    return Loaded(model.eval(), processor)


def check_target(out: Path, *sources: str | Path | None) -> None:
    """Refuse an output folder whose present content is not an earlier export.

    Args:
        out: the folder to write.
        sources: the model and the base of an adapter, which must not be overwritten.

    Raises:
        ExportError: `out` is a file, one of `sources`, or a folder of other things.
    """
    if any(source is not None and out.resolve() == Path(source).resolve() for source in sources):
        raise ExportError(f"{out} is the model to export or its base; choose another folder for --out")
    if out.is_dir():
        if any(out.iterdir()) and not (out / NOTES_FILE).is_file():
            raise ExportError(f"{out} has files that no export wrote (there is no {NOTES_FILE}); choose a new folder")
    elif out.exists():
        raise ExportError(f"{out} is a file; choose a new folder for --out")
