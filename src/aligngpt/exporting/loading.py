"""Loads the model to export in the precision of its files, and removes an earlier export only if it is one."""

from pathlib import Path
from typing import NamedTuple

from aligngpt.errors import AlignGPTError
from aligngpt.inference.loading import load_model as load_in_precision
from aligngpt.inference.loading import read_config
from aligngpt.model.adapters import is_adapter
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
    if base is None and not is_adapter(source):
        config = read_config(source, ExportError)
        if getattr(config, "quantization_config", None) is not None:
            raise ExportError(
                f"{source} stores quantised weights, which cannot be exported; export the model that they were made "
                "from"
            )
    model, processor = load_in_precision(source, base=base, device="cpu", dtype="stored", error=ExportError)
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
