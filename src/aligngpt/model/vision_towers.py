"""Vision towers: any network of transformers or timm that turns an image into one token per patch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from aligngpt.hub_names import local_or_hub
from aligngpt.model.backbones import (
    LOADING_ERRORS,
    BackboneError,
    load,
    load_config,
    name_of_part,
    network_class,
    on_meta,
    some,
)
from aligngpt.model.configuration import check_scales
from aligngpt.model.configuration_timm_tower import is_timm_checkpoint

AS_THE_TOWER = ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor")
"""Settings of a tower's own image processor that determine how pixels are scaled and normalised."""

Framing = bool | Literal["stretch"]
"""How an image becomes a square: padded with the mean colour (True), its centre cut out (False), or `stretch`."""

INSTEAD = "use one that reads images of a fixed size, such as CLIP, SigLIP, SigLIP 2 (not NaFlex) or DINOv2"


@dataclass(frozen=True)
class VisionTower:
    """A vision tower and the layout of its features.

    Attributes:
        model: the network; its output has `hidden_states`, each `(images, tokens, hidden)`.
        image_processor: resizes and normalises an image to the tower's size, mean and standard deviation.
        patch_size: side of a patch, in pixels.
        select_strategy: `default` if the first token is a class token to be dropped, else `full`.
        image_tokens: P, patch tokens per image.
        register_tokens: number of further tokens before the patches, to be dropped too.
        stretches: whether the tower's own image processor resizes images to a square, as SigLIP's does, instead of
            cutting one out.
    """

    model: PreTrainedModel
    image_processor: LlavaImageProcessorPil
    patch_size: int
    select_strategy: Literal["default", "full"]
    image_tokens: int
    register_tokens: int
    stretches: bool


def load_vision_tower(
    source: str | Path,
    *,
    pad_images: Framing = True,
    image_size: int | None = None,
    image_scales: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    weights: bool = True,
) -> VisionTower:
    """Load a vision tower, stand-alone or from a larger model (CLIP, LLaVA), and determine the layout of its features.

    Args:
        source: folder or hub name, with a preprocessor configuration.
        pad_images: pad images to a square with the mean colour; False takes a centre crop, `stretch` resizes images to
            the square without keeping their proportions.
        image_size: side in pixels that images are resized to; the side in the preprocessor configuration when None.
        image_scales: several sides instead of `image_size`; the tower reads squares of the first, images are
            resized to the last.
        dtype: dtype of the parameters.
        weights: False reads only the configurations; the parameters then have shapes but no values.

    Raises:
        BackboneError: the source cannot be loaded, or its tokens are not one per patch in reading order, optionally
            preceded by others (class token, registers).
    """
    if image_scales:
        try:
            check_scales(image_scales)
        except ValueError as error:
            raise BackboneError(str(error)) from error
        if image_size not in (None, image_scales[0]):
            raise BackboneError(f"give image_size {image_size} or image_scales {list(image_scales)}, not both")
        image_size = image_scales[0]
    of_timm = _timm_content(source)
    if of_timm is None:
        whole = load_config(source, "vision tower")
    else:
        from aligngpt.model.modeling_timm_tower import timm_tower_config

        whole = timm_tower_config(of_timm, source)
    config = getattr(whole, "vision_config", whole)
    if not hasattr(config, "patch_size"):
        raise BackboneError(
            f"{source}: {config.model_type} does not state a patch size, so it is not a vision transformer that "
            f"splits images into patches; {INSTEAD}"
        )
    if network_class(config) is None:
        raise BackboneError(f"{source}: transformers has no stand-alone network for {config.model_type}; {INSTEAD}")
    try:
        settings = _own_preprocessing(source, of_timm)
        model = _load_tower(source, whole, config, dtype) if weights else on_meta(AutoModel, config, dtype)
    except LOADING_ERRORS as error:
        raise BackboneError(f"the vision tower {source} cannot be loaded: {error}") from error
    config = model.config
    size = image_size or _side(settings, config, source)
    patch, other = sides_of(config.patch_size)
    if patch != other:
        raise BackboneError(f"{source}: its patches are {patch} × {other} pixels; only square patches are supported")
    patches = (size // patch) ** 2
    leading = _leading_tokens(model.eval(), source, size, patch)
    registers = getattr(config, "num_register_tokens", None) or 0
    has_class_token = leading != registers
    return VisionTower(
        model=model,
        image_processor=_image_processor(settings, image_scales[-1] if image_scales else size, pad_images, source),
        patch_size=patch,
        select_strategy="default" if has_class_token else "full",
        image_tokens=patches,
        register_tokens=leading - has_class_token,
        stretches=_stretches(settings),
    )


def framing(pad_images: Framing, side: int) -> dict[str, Any]:
    """The settings of an image processor that make a square of `side` pixels of an image."""
    stretched = pad_images == "stretch"
    return {
        "do_pad": pad_images is True,
        "do_center_crop": not stretched,
        "size": {"height": side, "width": side} if stretched else {"shortest_edge": side},
    }


def stretch(images: LlavaImageProcessorPil) -> None:
    """Let an image processor resize images to its square without keeping their proportions, not pad or crop them."""
    side = dict(images.crop_size)["height"]
    images.size = SizeDict(height=side, width=side)
    images.do_center_crop = images.do_pad = False


def _load_tower(source: str | Path, whole: PretrainedConfig, config: PretrainedConfig, dtype: torch.dtype) -> Any:
    """The tower of a source, which is the tower itself or a larger model that contains it.

    transformers can load the tower alone from some larger models (CLIP). In others it finds no tensor under the
    expected names and leaves random values; these are loaded in full and the tower is extracted.

    Raises:
        BackboneError: the source lacks tensors that its features depend on.
    """
    model, missing = load(AutoModel, source, dtype, config=config)
    missing = _that_count(model, missing)
    if missing and whole is not config:
        # In the precision of the file: the rest of the model may be large and is dropped.
        larger, missing_of_all = load(AutoModel, source, "auto")
        if (name := name_of_part(larger, type(model))) is not None:
            model = larger.get_submodule(name).to(dtype)
            within = f"{name}." if name else ""
            own = [one.removeprefix(within) for one in missing_of_all if one.startswith(within)]
            missing = _that_count(model, own)
    if missing:
        raise BackboneError(
            f"{source} has no weights for {some(missing)} of its {type(model).__name__}; they would be left "
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
        side = sides_of(model.config.image_size)[0]
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


def _leading_tokens(model: PreTrainedModel, source: str | Path, size: int, patch: int) -> int:
    """Number of tokens before the patches.

    Raises:
        BackboneError: the tower cannot read images of this size, its tokens are not one per patch after these, or the
            patches are not in reading order.
    """
    needed = [name for name, one in signature(model.forward).parameters.items() if _must_be_given(one)]
    if len(needed) > 1:
        raise BackboneError(
            f"{source}: {type(model).__name__} needs {', '.join(needed[1:])} besides the image; towers that read "
            f"patches or grids of any shape are not supported; {INSTEAD}"
        )
    grid = size // patch
    patches = grid**2
    # A blank image, and two that differ from it in one patch: the last of the first row, and the first of the last row.
    changed = (grid - 1, patches - grid)
    try:
        with torch.no_grad():
            pixels = torch.zeros(1 + len(changed), 3, size, size, dtype=model.dtype, device=model.device)
            for image, place in enumerate(changed, 1):
                top, left = (patch * one for one in divmod(place, grid))
                pixels[image, :, top : top + patch, left : left + patch] = 2
            states = model(pixels, output_hidden_states=True).hidden_states
    # Unsupported towers may raise anything here.
    except Exception as error:
        raise BackboneError(
            f"{source}: {type(model).__name__} cannot read plain images of {size} px ({error}); towers that "
            f"read patches or grids of any shape are not supported; {INSTEAD}"
        ) from error
    shapes = {tuple(state.shape) for state in states or ()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 3 or shape[0] != len(pixels):
        raise BackboneError(
            f"{source}: {type(model).__name__} does not output one sequence of tokens per image at every layer; towers "
            f"of that kind are not supported; {INSTEAD}"
        )
    leading = int(shape[1]) - patches
    if leading < 0:
        raise BackboneError(
            f"{source}: {shape[1]} tokens for an image of {size} px, expected {patches} patches of {patch} px, with or "
            f"without others before them; towers that pool their patches are not supported; {INSTEAD}"
        )
    if not states[0].is_meta and not _in_reading_order(states[0], [leading + place for place in changed]):
        raise BackboneError(
            f"{source}: the last {patches} of the {shape[1]} tokens of {type(model).__name__} are not the patches in "
            f"reading order; towers of that kind are not supported; {INSTEAD}"
        )
    return leading


def _must_be_given(parameter: Parameter) -> bool:
    return parameter.default is Parameter.empty and parameter.kind not in (
        Parameter.VAR_POSITIONAL,
        Parameter.VAR_KEYWORD,
    )


def _in_reading_order(embedded: Tensor, places: Sequence[int]) -> bool:
    """Whether each image differs from the first one most at its place.

    Args:
        embedded: input of the first layer, `(images, tokens, hidden)`.
        places: a token for each image but the first.
    """
    difference = (embedded[1:] - embedded[:1]).float().norm(dim=-1)
    return difference.argmax(dim=-1).tolist() == list(places)


def sides_of(size: Any) -> tuple[int, int]:
    """Height and width from a configuration's `image_size` or `patch_size`, which is one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _timm_content(source: str | Path) -> dict[str, Any] | None:
    """The content of config.json if the source is a timm checkpoint, which has no configuration of transformers."""
    local_or_hub(source, "the vision tower", BackboneError)
    try:
        content, _ = PretrainedConfig.get_config_dict(source)
    except LOADING_ERRORS:
        return None  # `load_config` reports it.
    return dict(content) if is_timm_checkpoint(content) else None


def _own_preprocessing(source: str | Path, of_timm: dict[str, Any] | None) -> Any:
    """The tower's image processor, or its settings alone if it needs a package that is not installed (torchvision)."""
    if of_timm is not None:
        from aligngpt.model.modeling_timm_tower import timm_preprocessing

        return timm_preprocessing(of_timm, source)
    try:
        return AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except ImportError:
        settings, _ = BaseImageProcessor.get_image_processor_dict(source)
        return SimpleNamespace(**settings)


def _side(settings: Any, config: PretrainedConfig, source: str | Path) -> int:
    for name in ("crop_size", "size"):
        size = getattr(settings, name, None)
        if not size:
            continue
        lengths = dict(size) if isinstance(size, Mapping) else vars(size)
        if side := lengths.get("height") or lengths.get("shortest_edge"):
            return int(side)
    if not hasattr(config, "image_size"):
        raise BackboneError(
            f"{source}: {config.model_type} states no image size; towers that read patches or grids of any shape are "
            f"not supported; {INSTEAD}"
        )
    return sides_of(config.image_size)[0]


def _stretches(settings: Any) -> bool:
    size = getattr(settings, "size", None)
    if not size or getattr(settings, "do_center_crop", None):
        return False
    lengths = dict(size) if isinstance(size, Mapping) else vars(size)
    return bool(lengths.get("height") and lengths.get("width"))


def _image_processor(settings: Any, size: int, pad_images: Framing, source: str | Path) -> LlavaImageProcessorPil:
    """LLaVA's preprocessing with the tower's settings; the Pillow version: pixels never depend on what is installed."""
    if getattr(settings, "resample", None) is None:
        raise BackboneError(
            f"{source}: its preprocessor configuration names no `resample` filter; add it (2: bilinear, 3: bicubic)"
        )
    return LlavaImageProcessorPil(
        **framing(pad_images, size),
        crop_size={"height": size, "width": size},
        resample=settings.resample,
        # Towers that normalise internally say so here.
        **{name: getattr(settings, name) for name in AS_THE_TOWER if getattr(settings, name, None) is not None},
    )
