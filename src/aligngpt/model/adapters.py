"""Adapter folders: low-rank adapters and AlignGPT's own modules, in peft's format, to be used with a base model.

An adapter folder holds the files that `PeftModel.save_pretrained` writes, plus the processor and the generation
settings. Its `adapter_config.json` names the base, the complete model that the adapters were trained on; the base is
not copied.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, GenerationConfig

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_folder
from aligngpt.hub_names import local_or_hub
from aligngpt.model.backbones import LOADING_ERRORS
from aligngpt.model.card import write_card
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.foreign.checkpoint_formats import EMBEDDINGS, HEAD
from aligngpt.model.foreign.weight_files import ShardError, read_shapes
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.new_folder import check_new_folder
from aligngpt.model.own_code import refuse_own_code
from aligngpt.model.processing import ALIGN_TOKEN, IMAGE_TOKEN, AlignGPTProcessor
from aligngpt.model.templates import for_images, one_template
from aligngpt.model.whole_weights import load_whole

OWN_PARTS = ("model.multi_modal_projector", "model.alignment")
"""Modules that an adapter folder always stores in full, if the model has them."""


_PREFIX = "base_model.model."
_BASE = "aligngpt_base"
"""Key in the metadata of the adapter file: fingerprint of the frozen weights that the adapters were trained on."""
_TOWER = "aligngpt_vision_tower"
"""The same of the vision tower, if the adapter does not store it. Adapters of earlier versions lack the key."""
_LANGUAGE_MODEL = ("model.language_model.", HEAD.partition(".")[0])
_VISION_TOWER = "model.vision_tower."


class AdapterError(AlignGPTError):
    """An adapter folder or its base cannot be used."""


def is_adapter(source: str | Path) -> bool:
    """Whether this is an adapter folder rather than a complete model."""
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
        folder: the folder to write to; it must exist.
        base: the model before training.
        processor: the processor of `base`.
        trained: the trained tensors, by their names in a model with peft's adapters (`….lora_A.default.weight`): the
            adapters, and the parameters of modules that are stored in full.
        base_folder: the folder that `base` is saved in.
        rank, alpha, dropout: settings of the adapters.
    """
    adapted = sorted({name.partition(".lora_")[0] for name in trained if ".lora_" in name})
    whole = [part for part in OWN_PARTS if any(name.startswith(f"{part}.") for name, _ in base.named_parameters())]
    if any(name.startswith("model.vision_tower.") for name in trained):
        whole.append("model.vision_tower")
    tensors = {
        name: tensor for name, tensor in base.state_dict().items() if name.startswith(tuple(f"{one}." for one in whole))
    }
    tensors |= trained
    metadata = {"format": "pt", _BASE: _fingerprint(base, _LANGUAGE_MODEL)}
    if _VISION_TOWER.rstrip(".") not in whole:
        metadata[_TOWER] = _fingerprint(base, _VISION_TOWER)
    save_file(
        {
            f"{_PREFIX}{name.replace('.default.', '.') if '.lora_' in name else name}": tensor.contiguous()
            for name, tensor in tensors.items()
        },
        folder / SAFETENSORS_WEIGHTS_NAME,
        metadata=metadata,
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
    """Load an adapter folder, merge it into its base, and return the merged model with its processor.

    Args:
        folder: the adapter folder.
        base: folder or hub name of the base; the base that the adapter names when None.
        dtype: dtype of the parameters; that of the base when None. Adapters are merged in the base's dtype, so that
            the result equals that of a model merged beforehand.

    Raises:
        AdapterError: the folder is damaged, its base is missing or is not the one it was trained on, or its tokenizer
            has tokens without a row in the embedding table.
    """
    source = str(base) if base is not None else named_base(folder)
    elsewhere = "If it is stored elsewhere, name it with --base FOLDER"
    local_or_hub(source, "the base", AdapterError, whose=f"of the adapter {folder}", advice=elsewhere)
    refuse_own_code(source, "the base", AdapterError)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise AdapterError(
            f"the base {source} of the adapter {folder} cannot be loaded: {str(error).rstrip('.')}. If it is stored "
            "elsewhere, name it with --base FOLDER"
        ) from error
    if not isinstance(config, AlignGPTConfig):
        if (folder / "non_lora_trainables.bin").is_file():
            raise AdapterError(
                f"{folder} is an adapter folder of LLaVA's code; merge it with that code's "
                "scripts/merge_lora_weights.py, then convert the merged model"
            )
        raise AdapterError(
            f"the base {source} of the adapter {folder} is a {config.model_type!r} model, expected an AlignGPT model"
        )
    try:
        whole: AlignGPTForConditionalGeneration = load_whole(
            AlignGPTForConditionalGeneration, source, "the base", AdapterError, dtype="auto"
        )
        processor = _processor(folder, source)
        stored = _stored(folder)
        _check_base(folder, source, whole)
        _grow(folder, source, whole, stored)
        _check_tokens(folder, source, whole, processor)
        try:
            adapted = PeftModel.from_pretrained(whole, folder)
        except KeyError as error:
            # Raised for modules that are stored in full; peft says nothing about the others.
            raise AdapterError(
                f"the adapter {folder} was made for another base than {source}: "
                f"{str(error.args[0]).removeprefix(_PREFIX)} is missing; name the right one with --base FOLDER"
            ) from error
        _check_names(folder, source, adapted, stored)
        model = adapted.merge_and_unload()
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except (*LOADING_ERRORS, ShardError) as error:
        raise AdapterError(
            f"the adapter {folder} cannot be applied to its base {source}: {str(error).rstrip('.')}. A file is "
            "missing or damaged, or adapter and base do not belong together; save or download them again, or name the "
            "base with --base of aligngpt merge"
        ) from error
    if dtype is not None:
        # Buffers (rotary frequencies) keep their precision.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    return model.eval(), processor


def merge_adapter(folder: Path, out: Path, *, base: str | Path | None = None) -> int:
    """Merge an adapter folder into its base and write the result as a self-contained model folder.

    Args:
        folder: the adapter folder.
        out: the output folder, new or empty; it appears only once it is complete.
        base: folder or hub name of the base; the base that the adapter names when None.

    Returns:
        The number of parameters.

    Raises:
        AdapterError: `folder` has no adapters, its base is missing, or `out` is not empty.
    """
    if not is_adapter(folder):
        raise AdapterError(
            f"{folder} is not an adapter folder (with {CONFIG_NAME}); give the output of a stage with lora.merge: false"
        )
    source = Path(base if base is not None else named_base(folder))
    check_new_folder(out, AdapterError)
    model, processor = load_adapter(folder, base=base)
    with atomic_folder(out) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        made_from = f"merged from the adapter `{folder.name}` and its base `{source.name}`."
        write_card(temporary, out.name, model.config, made_from)
    return model.num_parameters()


def named_base(folder: Path) -> str:
    """The base that an adapter folder names: a folder or a hub name.

    Raises:
        AdapterError: it names none, or its configuration cannot be read.
    """
    path = folder / CONFIG_NAME
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise AdapterError(f"{path} cannot be read: {error}; save or download the adapter again") from error
    if not named:
        raise AdapterError(f"{path} does not name a base; give one with --base FOLDER")
    return str(named)


def _processor(folder: Path, source: str) -> AlignGPTProcessor:
    """The adapter's own processor; without one, the base's with the adapter's tokenizer and chat template, if any.

    Raises:
        AdapterError: token ids differ from those of the base.
    """
    # Adapters trained elsewhere may come without a processor, or with only a tokenizer.
    own = any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    with_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    processor: AlignGPTProcessor = AutoProcessor.from_pretrained(folder if own else source, trust_remote_code=False)
    if not own and with_tokenizer:
        processor.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
        if template := one_template(processor.tokenizer.chat_template, f"the tokenizer of {folder}"):
            processor.chat_template = for_images(template, str(folder))
    if own or with_tokenizer:
        ours, theirs = processor.tokenizer.get_vocab(), _vocabulary(source)
        moved = [token for token, index in theirs.items() if ours.get(token) != index]
        if moved:
            raise AdapterError(
                f"the tokenizer of the adapter {folder} and that of its base {source} differ: {moved[0]!r} is token "
                f"{ours.get(moved[0])} in the adapter and {theirs[moved[0]]} in the base ({len(moved)} differ); name "
                "the base that the adapter was trained on with --base FOLDER"
            )
    return processor


def _vocabulary(source: str) -> Mapping[str, int]:
    """The vocabulary of a base; empty if it has no tokenizer."""
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False).get_vocab()
    except (OSError, ValueError):
        return {}


def _stored(folder: Path) -> Mapping[str, tuple[int, ...]]:
    """The shape of every tensor of an adapter folder, by its name in the base."""
    file = next((folder / name for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME) if (folder / name).is_file()), None)
    if file is None:
        raise AdapterError(f"{folder} has no {SAFETENSORS_WEIGHTS_NAME}; save or download the adapter again")
    return {name.removeprefix(_PREFIX): shape for name, shape in read_shapes([file]).items()}


def _check_base(folder: Path, source: str, base: AlignGPTForConditionalGeneration) -> None:
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        return
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
    for key, part, words in ((_BASE, _LANGUAGE_MODEL, "language model"), (_TOWER, _VISION_TOWER, "vision tower")):
        known = metadata.get(key)
        if known is not None and known != _fingerprint(base, part):
            raise AdapterError(
                f"the adapter {folder} was trained on another base than {source}: the weights of the {words} differ in "
                "shape or value; name the right one with --base FOLDER"
            )


def _fingerprint(base: AlignGPTForConditionalGeneration, part: str | tuple[str, ...]) -> str:
    """Hash of a part of a base that adapters leave unchanged: names, shapes, and a sample of each weight.

    Values are compared in bfloat16, so a copy of the base in that precision counts as the same base.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(base.named_parameters()):
        if name.startswith(part):
            flat = tensor.detach().reshape(-1)
            some = flat[:: max(1, len(flat) // 256)].cpu().bfloat16().view(torch.int16).tolist()
            digest.update(repr((name, tuple(tensor.shape), some)).encode())
    return digest.hexdigest()


def _grow(
    folder: Path, source: str, base: AlignGPTForConditionalGeneration, stored: Mapping[str, tuple[int, ...]]
) -> None:
    """Enlarge the base's embedding table if the adapter was trained with more tokens than the base has."""
    rows = stored.get(EMBEDDINGS, (0,))[0]
    embeddings: Any = base.get_input_embeddings()
    old = len(embeddings.weight)
    if rows <= old:
        return
    if HEAD not in stored and not base.config.tie_word_embeddings:
        raise AdapterError(
            f"the adapter {folder} has an embedding table of {rows} rows where its base {source} has {old}, but no "
            f"output layer of that size ({HEAD}); save the adapter with both"
        )
    base.resize_token_embeddings(rows, mean_resizing=False)


def _check_tokens(
    folder: Path, source: str, model: AlignGPTForConditionalGeneration, processor: AlignGPTProcessor
) -> None:
    embeddings: Any = model.get_input_embeddings()
    rows = len(embeddings.weight)
    vocabulary = processor.tokenizer.get_vocab()
    needed = max(vocabulary.values()) + 1
    if needed > rows:
        raise AdapterError(
            f"the tokenizer of the adapter {folder} has {needed} tokens but the embedding table of its base {source} "
            f"has {rows} rows, and the adapter has no larger table; name the base that it was trained on with --base "
            "FOLDER, or save the adapter with its embedding table and output layer"
        )
    for token, index in ((IMAGE_TOKEN, model.config.image_token_index), (ALIGN_TOKEN, model.config.align_token_index)):
        if index >= 0 and vocabulary.get(token) != index:
            raise AdapterError(
                f"{token} is token {vocabulary.get(token)} in the tokenizer of the adapter {folder} and {index} in its "
                f"base {source}; name the base that the adapter was trained on with --base FOLDER"
            )


def _check_names(folder: Path, source: str, adapted: PeftModel, stored: Mapping[str, tuple[int, ...]]) -> None:
    """Check that stored tensors and adapted parameters match one to one: peft silently ignores the rest."""
    places = {name.removeprefix(_PREFIX) for name in get_peft_model_state_dict(adapted, save_embedding_layers=False)}
    stray = sorted(stored.keys() - places - {EMBEDDINGS, HEAD})
    empty = sorted(places - stored.keys())
    problems = [f"{name} has no counterpart in it" for name in stray[:5]] + [f"{name} is missing" for name in empty[:5]]
    if problems:
        raise AdapterError(
            f"the adapter {folder} was made for another base than {source}: {'; '.join(problems)}"
            f"{f' ({len(stray) + len(empty)} in all)' if len(stray) + len(empty) > len(problems) else ''}; name the "
            "right one with --base FOLDER"
        )
