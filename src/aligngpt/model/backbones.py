"""The backbones of a model: any vision tower and any causal language model that transformers loads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from aligngpt.errors import AlignGPTError
from aligngpt.model.configuration import check_scales
from aligngpt.model.processing import ALIGN_TOKEN, IMAGE_TOKEN

LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


class BackboneError(AlignGPTError):
    """A backbone cannot be loaded or is of a kind that does not fit; the message says which and what to do."""


@dataclass(frozen=True)
class VisionTower:
    """A vision tower and what its features look like.

    Attributes:
        model: the network; its output has `hidden_states`, each `(images, tokens, hidden)`.
        image_processor: brings a picture to the tower's size, mean and standard deviation.
        patch_size: side of a patch, in pixels.
        select_strategy: `default` when the first token is a class token to be dropped, `full` when all are patches.
        image_tokens: P, patch tokens per image.
        register_tokens: how many tokens stand between the class token, if any, and the patches.
    """

    model: PreTrainedModel
    image_processor: LlavaImageProcessorPil
    patch_size: int
    select_strategy: Literal["default", "full"]
    image_tokens: int
    register_tokens: int


def load_vision_tower(
    source: str | Path,
    *,
    pad_images: bool = True,
    image_size: int | None = None,
    image_scales: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    weights: bool = True,
) -> VisionTower:
    """Load a vision tower, by itself or out of a CLIP-like model, and find out what its features look like.

    Args:
        source: folder or hub name, with a preprocessor configuration.
        pad_images: pad pictures to a square with the mean colour; False cuts out the middle.
        image_size: side in pixels that pictures are brought to; the side in the preprocessor configuration when None.
        image_scales: in place of `image_size`, several sides; the tower reads squares of the first, pictures are
            brought to the last.
        dtype: of the parameters.
        weights: False reads the configurations only; the parameters then have shapes but no values.

    Raises:
        BackboneError: the source cannot be loaded, or its tokens are not one per patch, with class and
            register tokens before them.
    """
    if image_scales:
        try:
            check_scales(image_scales)
        except ValueError as error:
            raise BackboneError(str(error)) from error
        if image_size not in (None, image_scales[0]):
            raise BackboneError(f"give image_size {image_size} or image_scales {list(image_scales)}, not both")
        image_size = image_scales[0]
    config = _load_config(source, "vision tower")
    config = getattr(config, "vision_config", config)
    if type(config) not in MODEL_MAPPING or not hasattr(config, "patch_size"):
        raise BackboneError(
            f"{source}: {config.model_type} is not a vision transformer that cuts pictures into patches; CLIP, SigLIP "
            "and DINOv2 (with or without registers) are known to work"
        )
    try:
        own_processor = AutoImageProcessor.from_pretrained(source)
        model = _load(AutoModel, source, config, dtype, weights=weights)
    except LOADING_ERRORS as error:
        raise BackboneError(f"the vision tower {source} cannot be loaded: {error}") from error
    size = image_size or _side(own_processor, config)
    tokens = _count_tokens(model.eval(), source, size)
    patches = (size // config.patch_size) ** 2
    registers = getattr(config, "num_register_tokens", None) or 0
    if tokens - registers not in (patches, patches + 1):
        named = f" and {registers} registers" if registers else ""
        raise BackboneError(
            f"{source}: {tokens} tokens for a picture of {size} px, expected {patches} patches of {config.patch_size} "
            f"px{named}, with or without a class token; towers with a pooled grid, or with tokens that "
            "num_register_tokens does not count, are not supported"
        )
    return VisionTower(
        model=model,
        image_processor=_image_processor(own_processor, image_scales[-1] if image_scales else size, pad_images),
        patch_size=config.patch_size,
        select_strategy="full" if tokens == patches + registers else "default",
        image_tokens=patches,
        register_tokens=registers,
    )


def load_language_model(
    source: str | Path, dtype: torch.dtype = torch.float32, *, weights: bool = True
) -> PreTrainedModel:
    """Load a causal language model whose body takes embeddings and whose head is linear.

    Args:
        source: folder or hub name.
        dtype: of the parameters.
        weights: False reads the configuration only; the parameters then have shapes but no values.

    Raises:
        BackboneError: the source cannot be loaded, or is not such a model.
    """
    config = _load_config(source, "language model")
    if config.get_text_config(decoder=True) is not config:
        raise BackboneError(
            f"{source}: {config.model_type} has parts besides its language model; give a text-only language model"
        )
    try:
        model = _load(AutoModelForCausalLM, source, config, dtype, weights=weights)
    except LOADING_ERRORS as error:
        raise BackboneError(f"the language model {source} cannot be loaded: {error}") from error
    body: Any = MODEL_MAPPING.get(type(config), None)
    if body is not type(model.base_model):
        raise BackboneError(
            f"{source}: the body of {type(model).__name__} is not what AutoModel makes of its configuration, so a "
            "saved model could not be loaded again"
        )
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise BackboneError(f"{source}: its output layer is {type(head).__name__}, expected a linear layer")
    embeddings: Any = model.get_input_embeddings()
    width = embeddings.weight.shape[1]
    if width != config.hidden_size:
        raise BackboneError(
            f"{source}: its embeddings are {width} wide and its layers {config.hidden_size}; they must agree"
        )
    return model.eval()


def load_tokenizer(source: str | Path, *, with_align: bool) -> Any:
    """The language model's tokenizer with the special tokens `<image>` and, where `with_align`, `<align>`.

    Raises:
        BackboneError: there is no tokenizer to load.
    """
    try:
        # Given here, because a padding side that is set later is not saved.
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    except LOADING_ERRORS as error:
        raise BackboneError(f"the tokenizer of {source} cannot be loaded: {error}") from error
    names = [IMAGE_TOKEN, ALIGN_TOKEN] if with_align else [IMAGE_TOKEN]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def grow_vocabulary(language: PreTrainedModel, size: int) -> None:
    """Make room for `size` tokens; new rows of the embedding and the head hold the mean of the old ones.

    See `new_rows` for what the embedding's are.
    """
    embeddings: Any = language.get_input_embeddings()
    old = len(embeddings.weight)
    if size <= old:
        return
    language.resize_token_embeddings(size, mean_resizing=False)
    if embeddings.weight.is_meta:
        return
    with torch.no_grad():
        head: Any = language.get_output_embeddings()
        head.weight[old:] = head.weight[:old].float().mean(dim=0).to(head.weight.dtype)
        if head.bias is not None:
            head.bias[old:] = head.bias[:old].mean()
        embeddings.weight[old:] = new_rows(embeddings.weight[:old], size - old)


def new_rows(table: torch.Tensor, count: int, *, apart: bool = True) -> torch.Tensor:
    """Rows for new tokens, `(count, hidden)`: the mean of those there are, `(tokens, hidden)`.

    A trace of noise (1 % of the spread, the same each time) keeps them `apart`: where a caller gives embeddings instead
    of ids, placeholders are known by theirs.
    """
    spread, mean = torch.std_mean(table.float(), dim=0)
    noise = (
        torch.randn(count, len(mean), generator=torch.Generator().manual_seed(0)) if apart else torch.zeros(count, 1)
    )
    return (mean + 0.01 * spread * noise).to(table.dtype)


def _load(kind: Any, source: str | Path, config: PretrainedConfig, dtype: torch.dtype, *, weights: bool) -> Any:
    if weights:
        return kind.from_pretrained(source, config=config, dtype=dtype)
    with torch.device("meta"):
        return kind.from_config(config, dtype=dtype)


def _load_config(source: str | Path, what: str) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(source)
    except LOADING_ERRORS as error:
        raise BackboneError(f"the {what} {source} cannot be loaded: {error}") from error


def _count_tokens(model: PreTrainedModel, source: str | Path, size: int) -> int:
    try:
        with torch.no_grad():
            pixels = torch.zeros(1, 3, size, size, dtype=model.dtype, device=model.device)
            return model(pixels).last_hidden_state.shape[1]
    except (ValueError, RuntimeError) as error:
        raise BackboneError(f"{source}: the tower cannot read pictures of {size} px: {error}") from error


def _side(image_processor: Any, config: PretrainedConfig) -> int:
    for name in ("crop_size", "size"):
        size = getattr(image_processor, name, None)
        if not size:
            continue
        lengths = dict(size) if isinstance(size, Mapping) else vars(size)
        if side := lengths.get("height") or lengths.get("shortest_edge"):
            return int(side)
    return int(config.image_size)


def _image_processor(own: Any, size: int, pad_images: bool) -> LlavaImageProcessorPil:
    """LLaVA's preprocessing with the tower's numbers. The Pillow one: the same pixels whatever else is installed."""
    return LlavaImageProcessorPil(
        do_pad=pad_images,
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        resample=own.resample,
        image_mean=list(own.image_mean),
        image_std=list(own.image_std),
    )
