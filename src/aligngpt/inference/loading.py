"""Loads a trained model: a folder, a name on the hub, or adapters merged with their base."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoProcessor, BitsAndBytesConfig

from aligngpt.device import resolve_device, resolve_dtype
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub
from aligngpt.inference.requests import EngineError
from aligngpt.model.adapters import is_adapter, load_adapter
from aligngpt.model.backbones import LOADING_ERRORS
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.language_models import note_stacked_weights
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.own_code import refuse_own_code
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.model.whole_weights import load_whole

NOT_QUANTISED = ("model.vision_tower", "model.multi_modal_projector", "model.alignment", "lm_head")
"""Parts that keep their precision: they are small, and their rounding would show in every token.

Their full names, because transformers compares from a module's first name on.
"""


def load_model(
    source: str | Path,
    *,
    base: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    device_map: str | None = None,
    bits: Literal[4, 8] | None = None,
    error: type[AlignGPTError] = EngineError,
) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """Load a model folder or hub name, or an adapter folder, which is merged with its base in memory.

    Args:
        source: folder written by `save_pretrained` of model and processor, its name on the hub, or adapter folder.
        base: folder or hub name of an adapter folder's base model; the one named in the adapter when None.
        device: `cpu`, `cuda`, `mps`, or `auto` for the best available.
        dtype: `float32`, `bfloat16`, `auto` for bfloat16 if it is faster on the device, or `stored` for the precision
            of the files.
        device_map: `auto` spreads the layers over all GPUs, and over the memory of the machine if they are too small.
        bits: hold the weights of the language model's linear layers in 8 or 4 bits (needs bitsandbytes).
        error: exception class to raise in place of `EngineError`.

    Raises:
        EngineError: the model cannot be loaded, lacks weights or is not an AlignGPT model, or two options exclude each
            other.
        AdapterError: an adapter folder or its base cannot be used.
        DeviceError: the device or precision is not available.
    """
    target = resolve_device(device)
    precision = None if dtype == "stored" else resolve_dtype(dtype, target)
    if is_adapter(source):
        if bits is not None or device_map is not None:
            raise error(
                f"{source} is an adapter folder, which is merged in memory; to load it in {bits or 'fewer'} bits or on "
                "several devices, write the merged model first: aligngpt merge ADAPTER --out FOLDER"
            )
        adapted, own_processor = load_adapter(Path(source), base=base, dtype=precision)
        return adapted.to(target), own_processor
    if base is not None:
        raise error(f"{source} is not an adapter folder and has no base; leave --base out")
    config = read_config(source, error)
    placing: dict[str, Any] = {}
    if bits is not None:
        placing["quantization_config"] = _quantization(bits, precision or config.dtype or torch.float32, error)
    if device_map is not None or bits is not None:
        placing["device_map"] = device_map or {"": target}
    try:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        model: AlignGPTForConditionalGeneration = load_whole(
            AlignGPTForConditionalGeneration, source, "the model", error, dtype=precision or "auto", **placing
        )
    except LOADING_ERRORS as why:
        raise error(
            f"the model {source} cannot be loaded: {str(why).rstrip('.')}. One of its files is missing "
            "or damaged; save or download the model again"
        ) from why
    if not isinstance(processor, AlignGPTProcessor):
        raise error(
            f"{source} has a {type(processor).__name__}, expected an AlignGPTProcessor: correct processor_class in its "
            "processor_config.json, or save or download the model again"
        )
    if bits is not None:
        note_stacked_weights(model.model.language_model, f"are not held in {bits} bits")
    return (model if placing else model.to(target)), processor


def read_config(source: str | Path, error: type[AlignGPTError] = EngineError) -> AlignGPTConfig:
    """The configuration of a model folder or hub name; the weights are not read.

    Raises:
        EngineError: or `error`: there is no such model, it is not an AlignGPT model, or it brings code of its own.
    """
    # A model on the hub always has an owner, so for a name without one the hub need not be asked.
    local_or_hub(source, "the model", error, with_owner=True)
    refuse_own_code(source, "the model", error)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except LOADING_ERRORS as why:
        raise error(
            f"the model {source} cannot be loaded: {str(why).rstrip('.')}. Give a model folder (with config.json) or a "
            "hub name; if its config.json is damaged, correct it, or save or download the model again"
        ) from why
    if not isinstance(config, AlignGPTConfig):
        raise error(f"{source} is a {config.model_type!r} model, expected an AlignGPT model")
    return config


def _quantization(bits: int, precision: torch.dtype, error: type[AlignGPTError]) -> BitsAndBytesConfig:
    """The settings of bitsandbytes; weights in 4 bits are multiplied in `precision`."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as why:
        raise error(f"{bits} bits need bitsandbytes; run: pip install 'aligngpt[bits]'") from why
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(NOT_QUANTISED))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=precision,
        llm_int8_skip_modules=list(NOT_QUANTISED),
    )
