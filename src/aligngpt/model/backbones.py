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
from aligngpt.hub_names import local_or_hub
from aligngpt.model.configuration import check_scales
from aligngpt.model.processing import ALIGN_TOKEN, IMAGE_TOKEN

LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


AS_THE_TOWER = ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor")
"""Settings of a tower's own image processor that determine how pixels are scaled and normalised."""


class BackboneError(AlignGPTError):
    """A backbone cannot be loaded or is of an unsupported kind; the message names it and says what to do."""


@dataclass(frozen=True)
class VisionTower:
    """A vision tower and the layout of its features.

    Attributes:
        model: the network; its output has `hidden_states`, each `(images, tokens, hidden)`.
        image_processor: resizes and normalises an image to the tower's size, mean and standard deviation.
        patch_size: side of a patch, in pixels.
        select_strategy: `default` if the first token is a class token to be dropped, `full` if all are patches.
        image_tokens: P, patch tokens per image.
        register_tokens: number of tokens between the class token, if any, and the patches.
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
    """Load a vision tower, stand-alone or from a CLIP-like model, and determine the layout of its features.

    Args:
        source: folder or hub name, with a preprocessor configuration.
        pad_images: pad images to a square with the mean colour; False takes a centre crop.
        image_size: side in pixels that images are resized to; the side in the preprocessor configuration when None.
        image_scales: several sides instead of `image_size`; the tower reads squares of the first, images are
            resized to the last.
        dtype: dtype of the parameters.
        weights: False reads only the configurations; the parameters then have shapes but no values.

    Raises:
        BackboneError: the source cannot be loaded, or its tokens are not one per patch, optionally
            preceded by class and register tokens.
    """
    if image_scales:
        try:
            check_scales(image_scales)
        except ValueError as error:
            raise BackboneError(str(error)) from error
        if image_size not in (None, image_scales[0]):
            raise BackboneError(f"give image_size {image_size} or image_scales {list(image_scales)}, not both")
        image_size = image_scales[0]
    whole = _load_config(source, "vision tower")
    config = getattr(whole, "vision_config", whole)
    if type(config) not in MODEL_MAPPING:
        raise BackboneError(
            f"{source}: transformers' AutoModel has no stand-alone model for {config.model_type}; CLIP, SigLIP and "
            "DINOv2 (with or without registers) are known to work"
        )
    if not hasattr(config, "patch_size"):
        raise BackboneError(
            f"{source}: {config.model_type} does not state a patch size, so it is not a vision transformer that "
            "splits images into patches; CLIP, SigLIP and DINOv2 (with or without registers) are known to work"
        )
    try:
        own_processor = AutoImageProcessor.from_pretrained(source)
        model = _load_tower(source, whole, config, dtype) if weights else _on_meta(AutoModel, config, dtype)
    except LOADING_ERRORS as error:
        raise BackboneError(f"the vision tower {source} cannot be loaded: {error}") from error
    config = model.config
    size = image_size or _side(own_processor, config)
    tokens = _count_tokens(model.eval(), source, size)
    patch, other = _sides(config.patch_size)
    if patch != other:
        raise BackboneError(f"{source}: its patches are {patch} × {other} pixels; only square patches are supported")
    patches = (size // patch) ** 2
    registers = getattr(config, "num_register_tokens", None) or 0
    if tokens - registers not in (patches, patches + 1):
        named = f" and {registers} registers" if registers else ""
        raise BackboneError(
            f"{source}: {tokens} tokens for an image of {size} px, expected {patches} patches of {patch} "
            f"px{named}, with or without a class token; towers with a pooled grid, or with tokens that "
            "num_register_tokens does not count, are not supported"
        )
    return VisionTower(
        model=model,
        image_processor=_image_processor(own_processor, image_scales[-1] if image_scales else size, pad_images),
        patch_size=patch,
        select_strategy="full" if tokens == patches + registers else "default",
        image_tokens=patches,
        register_tokens=registers,
    )


def load_language_model(
    source: str | Path, dtype: torch.dtype = torch.float32, *, weights: bool = True
) -> PreTrainedModel:
    """Load a causal language model whose body accepts embeddings and whose head is linear.

    Args:
        source: folder or hub name.
        dtype: dtype of the parameters.
        weights: False reads only the configuration; the parameters then have shapes but no values.

    Raises:
        BackboneError: the source cannot be loaded, or is not such a model.
    """
    config = _load_config(source, "language model")
    if config.get_text_config(decoder=True) is not config:
        raise BackboneError(
            f"{source}: {config.model_type} has components besides its language model; give a text-only language model"
        )
    try:
        if weights:
            model, missing = _load(AutoModelForCausalLM, source, dtype, config=config)
        else:
            model, missing = _on_meta(AutoModelForCausalLM, config, dtype), []
    except LOADING_ERRORS as error:
        raise BackboneError(f"the language model {source} cannot be loaded: {error}") from error
    if missing:
        raise BackboneError(
            f"{source} has no weights for {_some(missing)} of {type(model).__name__}; they would be left random. "
            "Give a complete causal language model, with its output layer"
        )
    body: Any = MODEL_MAPPING.get(type(config), None)
    if body is not type(model.base_model):
        raise BackboneError(
            f"{source}: the body of {type(model).__name__} is not the class that AutoModel builds from its "
            "configuration, so a saved model could not be loaded again"
        )
    try:
        head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
        rows, width = embeddings.weight.shape
    # Some classes look for them in the wrong place, others have none.
    except (AttributeError, NotImplementedError) as error:
        raise BackboneError(
            f"{source}: {type(model).__name__} does not expose its embeddings ({error}); this kind of language "
            "model is not supported"
        ) from error
    if not isinstance(head, nn.Linear):
        raise BackboneError(f"{source}: its output layer is {type(head).__name__}, expected a linear layer")
    if rows != head.out_features:
        raise BackboneError(
            f"{source}: it has embeddings for {rows} tokens and an output layer for {head.out_features}; they must "
            "match"
        )
    if width != config.hidden_size:
        raise BackboneError(
            f"{source}: its embeddings are {width} wide and its layers {config.hidden_size}; they must match"
        )
    return model.eval()


def load_tokenizer(source: str | Path, *, with_align: bool) -> Any:
    """The language model's tokenizer with the special tokens `<image>` and, if `with_align`, `<align>`.

    Raises:
        BackboneError: the tokenizer is missing or cannot be loaded.
    """
    local_or_hub(source, "the tokenizer of", BackboneError)
    try:
        # Passed here because a padding side set later is not saved.
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    except LOADING_ERRORS as error:
        raise BackboneError(f"the tokenizer of {source} cannot be loaded: {error}") from error
    names = [IMAGE_TOKEN, ALIGN_TOKEN] if with_align else [IMAGE_TOKEN]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def grow_vocabulary(language: PreTrainedModel, size: int) -> None:
    """Resize the vocabulary to at least `size` tokens; new rows of embedding and head hold the mean of the old ones.

    The embedding rows come from `new_rows`.

    Raises:
        BackboneError: the vocabulary cannot be enlarged.
    """
    embeddings: Any = language.get_input_embeddings()
    old = len(embeddings.weight)
    if size <= old:
        return
    try:
        language.resize_token_embeddings(size, mean_resizing=False)
    # It initialises new rows with the model's own code, which may raise anything.
    except Exception as error:
        raise BackboneError(
            f"{type(language).__name__} cannot be given {size - old} more tokens ({error}); this kind of language "
            "model is not supported"
        ) from error
    if embeddings.weight.is_meta:
        return
    with torch.no_grad():
        head: Any = language.get_output_embeddings()
        head.weight[old:] = head.weight[:old].float().mean(dim=0).to(head.weight.dtype)
        if head.bias is not None:
            head.bias[old:] = head.bias[:old].mean()
        embeddings.weight[old:] = new_rows(embeddings.weight[:old], size - old)


def new_rows(table: torch.Tensor, count: int, *, apart: bool = True) -> torch.Tensor:
    """Rows for new tokens, `(count, hidden)`: the mean of the existing ones, `(tokens, hidden)`.

    With `apart`, a little fixed-seed noise (1 % of the standard deviation) makes them distinct: if a caller passes
    embeddings instead of ids, placeholders are identified by their embeddings.
    """
    spread, mean = torch.std_mean(table.float(), dim=0)
    noise = (
        torch.randn(count, len(mean), generator=torch.Generator().manual_seed(0)) if apart else torch.zeros(count, 1)
    )
    return (mean + 0.01 * spread * noise).to(table.dtype)


def _load(kind: Any, source: str | Path, dtype: torch.dtype | str, **options: Any) -> tuple[Any, list[str]]:
    """A model, and the names of the tensors missing from the source, which are left random."""
    model, found = kind.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    return model, sorted(found["missing_keys"])


def _on_meta(kind: Any, config: PretrainedConfig, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        return kind.from_config(config, dtype=dtype)


def _load_tower(source: str | Path, whole: PretrainedConfig, config: PretrainedConfig, dtype: torch.dtype) -> Any:
    """The tower of a source, which is the tower itself or a larger model that contains it.

    transformers can load the tower alone from some larger models (CLIP). In others it finds no tensor under the
    expected names and leaves random values; these are loaded in full and the tower is extracted.

    Raises:
        BackboneError: the source lacks tensors that its features depend on.
    """
    model, missing = _load(AutoModel, source, dtype, config=config)
    missing = _that_count(model, missing)
    if missing and whole is not config:
        # In the precision of the file: the rest of the model may be large and is dropped.
        larger, missing_of_all = _load(AutoModel, source, "auto")
        kind: Any = MODEL_MAPPING[type(config)]
        name = next((name for name, module in larger.named_modules() if type(module) is kind), None)
        if name is not None:
            model = larger.get_submodule(name).to(dtype)
            within = f"{name}." if name else ""
            own = [one.removeprefix(within) for one in missing_of_all if one.startswith(within)]
            missing = _that_count(model, own)
    if missing:
        raise BackboneError(
            f"{source} has no weights for {_some(missing)} of its {type(model).__name__}; they would be left "
            "random. Give a folder with the vision tower's weights"
        )
    return model


def _that_count(model: PreTrainedModel, missing: Sequence[str]) -> list[str]:
    """The missing tensors that some hidden state depends on: a pooling head may be missing."""
    if not missing:
        return []
    parameters = dict(model.named_parameters())
    known = [name for name in missing if name in parameters]
    try:
        side = _sides(model.config.image_size)[0]
        with torch.enable_grad():
            output = model.eval()(torch.zeros(1, 3, side, side, dtype=model.dtype), output_hidden_states=True)
            states = [*output.hidden_states, output.last_hidden_state]
            total = torch.stack([state.float().sum() for state in states]).sum()
            gradients = torch.autograd.grad(total, [parameters[name] for name in known], allow_unused=True)
    except Exception:
        # Towers that cannot read such an image may raise anything; then any of the tensors may matter.
        return list(missing)
    idle = {name for name, gradient in zip(known, gradients, strict=True) if gradient is None}
    return [name for name in missing if name not in idle]


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 4 else ", ".join(names)


def _sides(size: Any) -> tuple[int, int]:
    """Height and width from a configuration's `image_size` or `patch_size`, which is one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _load_config(source: str | Path, what: str) -> PretrainedConfig:
    local_or_hub(source, f"the {what}", BackboneError)
    try:
        return AutoConfig.from_pretrained(source)
    except LOADING_ERRORS as error:
        raise BackboneError(f"the {what} {source} cannot be loaded: {error}") from error


def _count_tokens(model: PreTrainedModel, source: str | Path, size: int) -> int:
    """Number of tokens that the tower outputs per image, whether patches or not."""
    try:
        with torch.no_grad():
            pixels = torch.zeros(2, 3, size, size, dtype=model.dtype, device=model.device)
            states = model(pixels, output_hidden_states=True).hidden_states
    # Unsupported towers may raise anything here.
    except Exception as error:
        raise BackboneError(
            f"{source}: {type(model).__name__} cannot read plain images of {size} px ({error}); towers that "
            "read patches or grids of any shape are not supported"
        ) from error
    shapes = {tuple(state.shape) for state in states or ()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 3 or shape[0] != 2:
        raise BackboneError(
            f"{source}: {type(model).__name__} does not output one sequence of tokens per image at every layer; towers "
            "of that kind are not supported"
        )
    return int(shape[1])


def _side(image_processor: Any, config: PretrainedConfig) -> int:
    for name in ("crop_size", "size"):
        size = getattr(image_processor, name, None)
        if not size:
            continue
        lengths = dict(size) if isinstance(size, Mapping) else vars(size)
        if side := lengths.get("height") or lengths.get("shortest_edge"):
            return int(side)
    if not hasattr(config, "image_size"):
        raise BackboneError(
            f"{config.model_type} states no image size: towers that read patches or grids of any shape are not "
            "supported; use one with a fixed size, such as CLIP, SigLIP or DINOv2"
        )
    return _sides(config.image_size)[0]


def _image_processor(own: Any, size: int, pad_images: bool) -> LlavaImageProcessorPil:
    """LLaVA's preprocessing with the tower's settings; the Pillow version: pixels never depend on what is installed."""
    return LlavaImageProcessorPil(
        do_pad=pad_images,
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        resample=own.resample,
        # Towers that normalise internally say so here.
        **{name: getattr(own, name) for name in AS_THE_TOWER if getattr(own, name, None) is not None},
    )
