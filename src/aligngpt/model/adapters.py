"""Adapter folders: low-rank adapters and the parts that are AlignGPT's own, in peft's format, beside a base model.

An adapter folder is what `PeftModel.save_pretrained` leaves, with the processor and the generation settings. Its
`adapter_config.json` names the base: a whole model that the adapters were trained on, which is not copied.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, GenerationConfig

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_folder
from aligngpt.model.card import write_card
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor

OWN_PARTS = ("model.multi_modal_projector", "model.alignment")
"""Modules that an adapter folder always holds whole, where the model has them."""


class AdapterError(AlignGPTError):
    """An adapter folder or its base cannot be used."""


def is_adapter(source: str | Path) -> bool:
    """Whether this is a folder with adapters, not with a whole model."""
    return (Path(source) / CONFIG_NAME).is_file()


def save_adapter(
    folder: Path,
    base: AlignGPTForConditionalGeneration,
    processor: AlignGPTProcessor,
    trained: dict[str, Tensor],
    *,
    base_folder: Path,
    rank: int,
    alpha: int,
    dropout: float,
) -> None:
    """Write an adapter folder.

    Args:
        folder: where to; it must exist.
        base: the model before it was trained.
        processor: its own.
        trained: what training changed, by its name in a model with peft's adapters (`….lora_A.default.weight`): the
            adapters, and parameters of modules that are then saved whole.
        base_folder: where `base` is saved.
        rank, alpha, dropout: of the adapters.
    """
    adapted = sorted({name.partition(".lora_")[0] for name in trained if ".lora_" in name})
    whole = [part for part in OWN_PARTS if any(name.startswith(f"{part}.") for name, _ in base.named_parameters())]
    if any(name.startswith("model.vision_tower.") for name in trained):
        whole.append("model.vision_tower")
    tensors = {
        name: tensor for name, tensor in base.state_dict().items() if name.startswith(tuple(f"{one}." for one in whole))
    }
    tensors |= trained
    save_file(
        {
            f"base_model.model.{name.replace('.default.', '.') if '.lora_' in name else name}": tensor.contiguous()
            for name, tensor in tensors.items()
        },
        folder / SAFETENSORS_WEIGHTS_NAME,
        metadata={"format": "pt"},
    )
    config = LoraConfig(
        base_model_name_or_path=str(base_folder.absolute()),
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=adapted,
        modules_to_save=whole,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    processor.save_pretrained(folder)
    base.generation_config.save_pretrained(folder)


def load_adapter(
    folder: Path, *, base: str | Path | None = None, dtype: torch.dtype | None = None
) -> tuple[AlignGPTForConditionalGeneration, AlignGPTProcessor]:
    """The model that an adapter folder and its base make together, and its processor.

    Args:
        folder: the adapter folder.
        base: folder or hub name of the base; what the adapter names when None.
        dtype: of the parameters; that of the base when None. Adapters are merged in the base's, so that the result is
            that of a model which was merged before.

    Raises:
        AdapterError: the folder is damaged, or its base is not there or of another kind.
    """
    source = str(base) if base is not None else _named_base(folder)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"the base {source} of the adapter {folder} cannot be loaded: {str(error).rstrip('.')}. If it is somewhere "
            "else, name it with --base FOLDER"
        ) from error
    if not isinstance(config, AlignGPTConfig):
        raise AdapterError(
            f"the base {source} of the adapter {folder} is a {config.model_type!r}, expected an AlignGPT"
        )
    try:
        # Adapters that others trained may come without a processor.
        own = any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
        processor = AutoProcessor.from_pretrained(folder if own else source)
        whole = AlignGPTForConditionalGeneration.from_pretrained(source, dtype="auto")
        model = PeftModel.from_pretrained(whole, folder).merge_and_unload()
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise AdapterError(
            f"the adapter {folder} cannot be put on its base {source}: {str(error).rstrip('.')}. A file of them is "
            "missing or damaged, or they do not belong together; save or download them again, or name the base with "
            "--base of aligngpt merge"
        ) from error
    if dtype is not None:
        # Buffers (rotary frequencies) keep their precision.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    return model.eval(), processor


def merge_adapter(folder: Path, out: Path, *, base: str | Path | None = None) -> int:
    """Write the model that an adapter folder and its base make together, as one folder that needs neither.

    Args:
        folder: the adapter folder.
        out: the folder to write; it appears when it is complete.
        base: folder or hub name of the base; what the adapter names when None.

    Returns:
        The number of parameters.

    Raises:
        AdapterError: `folder` has no adapters, its base is not there, or `out` would take the place of either.
    """
    if not is_adapter(folder):
        raise AdapterError(
            f"{folder} is no adapter folder (with {CONFIG_NAME}); give what a stage with lora.merge: false left"
        )
    source = Path(base if base is not None else _named_base(folder))
    if out.resolve() in (folder.resolve(), source.resolve()):
        raise AdapterError(f"{out} is the adapter or its base; choose another folder for the merged model")
    model, processor = load_adapter(folder, base=base)
    with atomic_folder(out) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        made_from = f"merged from the adapter `{folder.name}` and its base `{source.name}`."
        write_card(temporary, out.name, model.config, made_from)
    return model.num_parameters()


def _named_base(folder: Path) -> str:
    path = folder / CONFIG_NAME
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise AdapterError(f"{path} cannot be read: {error}; save or download the adapter again") from error
    if not named:
        raise AdapterError(f"{path} does not name a base; give one with --base FOLDER")
    return str(named)
