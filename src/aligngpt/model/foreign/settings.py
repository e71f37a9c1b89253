"""Settings of foreign configurations: those not carried over are irrelevant, reported, or refused.

A layout carries the settings it knows into our configuration. This module checks the rest, so that no setting that
changes a model's answers is dropped silently.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aligngpt.model.foreign.checkpoint_formats import TOWER, Layout, LayoutError, LlavaLayout, OriginalLayout
from aligngpt.model.vision_towers import VisionTower, stretch

ABOUT_IMAGES = ("mm_", "vision_", "image_", "multimodal_", "projector_", "s2", "use_s2", "rope_")
"""Prefixes of settings that may change how a model handles images or positions."""

# Settings read elsewhere, implied by weight shapes, or relevant only to training or together with other settings.
_WITHOUT_LOSS = {
    OriginalLayout: {
        *("mm_vision_tower", "mm_projector_type", "mm_vision_select_layer", "mm_vision_select_feature"),
        *("mm_use_im_start_end", "mm_use_im_patch_token", "mm_hidden_size", "mm_patch_merge_type", "mm_resampler_type"),
        *("mm_projector_lr", "mm_vision_tower_lr", "mm_tunable_parts", "image_aspect_ratio", "image_grid_pinpoints"),
        *("image_crop_resolution", "image_split_resolution", "use_s2", "s2", "s2_scales"),
        *("rope_theta", "rope_scaling", "rope_parameters", "vision_tower_pretrained"),
    },
    LlavaLayout: {
        *("vision_config", "vision_feature_layer", "vision_feature_select_strategy", "image_token_index"),
        *("image_token_id", "image_seq_length", "projector_hidden_act", "multimodal_projector_bias"),
    },
}
_TOWER_SETTINGS = (
    *("image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("hidden_act", "layer_norm_eps", "num_channels"),
)
_OF_PIXELS = ("image_mean", "image_std", "resample", "rescale_factor", "do_rescale", "do_normalize", "do_pad")
"""Settings of an image processor that are taken over."""
_ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "non_lora_trainables.bin",
)
_ANYRES = (
    "it cuts images into tiles (image_aspect_ratio {!r}, as LLaVA-1.6 and LLaVA-NeXT do), which is not supported; "
    "only models that read an image as one square, padded or cropped (LLaVA-1.5, AlignGPT), can be converted"
)


def check_kind(source: Path) -> None:
    """Refuse an adapter folder, which is not a complete model.

    Raises:
        LayoutError: it is an adapter folder of peft or of LLaVA's code; the message says how to merge it.
    """
    if not any((source / name).is_file() for name in _ADAPTER_FILES):
        return
    llavas = (source / "non_lora_trainables.bin").is_file()
    whose = "LLaVA" if llavas else "peft"
    how = "scripts/merge_lora_weights.py of LLaVA" if llavas else "aligngpt merge, or merge_and_unload of peft"
    raise LayoutError(
        f"{source} is an adapter folder of {whose}, not a complete model; merge it with its base first ({how}), then "
        "convert the merged model"
    )


def carry_pictures(source: Path, layout: Layout, tower: VisionTower) -> tuple[str, ...]:
    """Let the tower's image processor frame and normalise images as the source does.

    The original code leaves images that it does not pad to the image processor of the vision tower, which cuts out the
    central square (CLIP) or resizes the whole image to a square (SigLIP). Transformers' LLaVA saves an image processor
    of its own.

    Args:
        source: the folder.
        layout: the layout of its configuration.
        tower: its image processor is modified.

    Returns:
        A note if the source does not state whether images are padded.

    Raises:
        LayoutError: its image size differs from that of the vision tower, or it shows other parts of images than the
            whole or a central square.
    """
    ours = tower.image_processor
    if not isinstance(layout, LlavaLayout):
        if tower.stretches and not layout.pads_images:
            stretch(ours)
        return ()
    stored = _image_settings(source)
    for name in _OF_PIXELS:
        if stored.get(name) is not None:
            setattr(ours, name, stored[name])
    try:
        stretched = _is_stretched(stored)
    except ValueError as error:
        raise LayoutError(
            f"{source} cannot be converted: its image processor {error}, which is not supported"
        ) from None
    cuts = stored.get("do_center_crop") is not False
    side = (cuts and _side(stored.get("crop_size"))) or _side(stored.get("size"))
    read = dict(ours.crop_size)["height"]
    if side and side != read:
        raise LayoutError(
            f"{source} reads images of {side} px but the vision tower reads {read} px; name the tower that it was "
            "trained with (--vision-tower)"
        )
    if stretched:
        stretch(ours)
    elif stored.get("do_pad") is None:
        return ("images are padded to a square, as in LLaVA-1.5; its image processor does not state whether to pad",)
    return ()


def check_framing(source: Path, images: Any, tower: str) -> None:
    """Check that the original code, with the vision tower's own image processor, would see what one of our models sees.

    Args:
        source: the model's folder, for the message.
        images: its image processor.
        tower: model type of its vision tower.

    Raises:
        LayoutError: it would not.
    """
    crops, own_crops = bool(images.do_center_crop), not tower.startswith("siglip")
    if images.do_pad or crops == own_crops:
        return
    ways = {True: "cuts out the central square", False: "resizes the whole image to a square"}
    raise LayoutError(
        f"{source} cannot be written in the original layout: it {ways[crops]}, but the original code {ways[own_crops]} "
        f"for a tower of type {tower}; only models that pad images (pad_images: true) see the same in both"
    )


def _is_stretched(stored: Mapping[str, Any]) -> bool:
    """Whether an image processor resizes an image to a square, rather than padding it to one or cutting one out.

    Raises:
        ValueError: it does none of these; the message continues "its image processor".
    """
    if stored.get("do_resize") is False:
        raise ValueError("leaves images in their own size (do_resize: false)")
    size, pads, cuts = stored.get("size"), stored.get("do_pad"), stored.get("do_center_crop")
    resized, crop = _side(size), _side(stored.get("crop_size"))
    whole = isinstance(size, dict) and size.get("height") and size.get("height") == size.get("width")
    if cuts is None:
        # SigLIP's has no such setting.
        cuts = not str(stored.get("image_processor_type")).startswith("Siglip")
    if not cuts:
        # What is padded first is a square, which is neither stretched nor cut.
        if pads or whole:
            return not pads
        raise ValueError("neither pads images nor cuts out their central square (do_center_crop: false)")
    if resized and crop and resized != crop:
        raise ValueError(f"resizes images to {resized} px and cuts out {crop} px (size, crop_size)")
    return pads is False and bool(whole)


def _side(size: Any) -> int | None:
    """The side of a size as image processors save it: a number, a square, or the shortest edge; None without one."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return size if isinstance(size, int) else None


def check_settings(
    source: Path, layout: Layout, tower: VisionTower, shapes: Mapping[str, Sequence[int]]
) -> tuple[str, ...]:
    """Check the settings of a source that its layout does not carry over.

    Args:
        source: the folder, for the messages.
        layout: the layout of its configuration.
        tower: the vision tower that the model gets.
        shapes: shapes of its weights, by our names.

    Returns:
        One sentence per lost setting that may matter.

    Raises:
        LayoutError: settings that change the model's answers cannot be kept; the message names all of them.
    """
    theirs = layout.theirs
    own_tower = any(name.startswith(TOWER) for name in shapes)
    problems = _refused(layout, tower, own_tower)
    if theirs.get("quantization_config"):
        problems.append("its weights are quantized (quantization_config); convert the unquantized ones")
    if problems:
        raise LayoutError(f"{source} cannot be converted: {'; '.join(problems)}")
    known = next(names for kind, names in _WITHOUT_LOSS.items() if isinstance(layout, kind))
    return tuple(
        f"the setting {name}: {value!r} of its configuration is unknown and was not kept"
        for name, value in theirs.items()
        if name.startswith(ABOUT_IMAGES) and name not in known and value not in (None, False, "", [], {})
    )


def check_before_loading(source: Path, layout: Layout) -> None:
    """Refuse models that cannot be converted according to their configuration, before loading anything.

    Raises:
        LayoutError: images are cut into tiles, or the projector is of an unsupported kind.
    """
    try:
        ratio = layout.theirs.get("image_aspect_ratio")
        if ratio not in (None, "pad", "square"):
            known = "anyres" in str(ratio) or "unpad" in str(layout.theirs.get("mm_patch_merge_type"))
            raise LayoutError(_ANYRES.format(ratio) if known else f"image_aspect_ratio {ratio!r} is not supported")
        layout.our_fields()
        _ = layout.image_scales
    except LayoutError as error:
        raise LayoutError(f"{source} cannot be converted: {error}") from error


def _refused(layout: Layout, tower: VisionTower, own_tower: bool) -> list[str]:
    theirs = layout.theirs
    if isinstance(layout, LlavaLayout):
        strategy = theirs.get("vision_feature_select_strategy", "default")
        problems = []
        if strategy != tower.select_strategy:
            problems.append(
                f"vision_feature_select_strategy is {strategy!r}, but with this vision tower it can only be "
                f"{tower.select_strategy!r} (the patches, without a class token)"
            )
        stated, found = theirs.get("vision_config") or {}, tower.model.config
        problems += [
            f"the {name} of its vision_config is {stated[name]!r} but that of the vision tower is "
            f"{getattr(found, name)!r}; name the tower that it was trained with (--vision-tower)"
            for name in _TOWER_SETTINGS
            if stated.get(name) is not None and hasattr(found, name) and stated[name] != getattr(found, name)
        ]
        return problems
    problems = [
        f"{name} is {theirs[name]!r}, which is not supported"
        for name, kept in (("mm_patch_merge_type", ("flat",)), ("mm_resampler_type", ("identity",)))
        if theirs.get(name) and theirs[name] not in kept
    ]
    if theirs.get("mm_vision_select_feature", "patch") != "patch" and tower.select_strategy != "full":
        problems.append(
            f"mm_vision_select_feature is {theirs['mm_vision_select_feature']!r}: it keeps the class token among the "
            "image tokens, which is not supported"
        )
    if theirs.get("unfreeze_mm_vision_tower") and not own_tower:
        problems.append(
            "its vision tower was trained (unfreeze_mm_vision_tower), but the trained tower is not among its weights"
        )
    return problems


def _image_settings(source: Path) -> Mapping[str, Any]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = source / name
        if not file.is_file():
            continue
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            settings = stored.get("image_processor", stored) if name.startswith("processor") else stored
            if "image_mean" in settings:
                return dict(settings)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise LayoutError(f"{file} cannot be read: {error}; download it again") from error
    return {}
