"""What llama.cpp computes otherwise than the model, and what therefore cannot be exported for it."""

from typing import Any

from PIL.Image import Resampling

from aligngpt.exporting.engines import refused_by_llava
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.processing import AlignGPTProcessor

ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""Language models by `model_type`, and their architectures in the package `gguf`."""

TOWER_GELU = {"gelu_pytorch_tanh": True, "quick_gelu": False}
"""Activations of vision towers that llama.cpp has, and the value of `clip.use_gelu` that selects them."""

PROJECTOR_GELU = ("gelu", "gelu_pytorch_tanh")
"""llama.cpp computes the tanh form for both; `export_gguf` measures what that changes."""

SQUARE = (
    "llama.cpp pads images that are not squares in its own way, and this model {crops}; if you will send only square "
    "images, pass --square-images"
)


def refused_by_llama_cpp(config: AlignGPTConfig, processor: AlignGPTProcessor, *, square_images: bool) -> str | None:
    """Why llama.cpp's LLaVA cannot compute what the model computes; None if it can.

    Args:
        config: that of the model.
        processor: that of the model.
        square_images: the user will send only square images, which llama.cpp resizes as the processor does.
    """
    return (
        refused_by_llava(config)
        or _refused_tower(config)
        or _refused_language_model(config.get_text_config())
        or _refused_preprocessing(config, processor.image_processor, square_images=square_images)
        or _refused_template(processor)
    )


def feature_layer(config: AlignGPTConfig) -> int:
    """The layer of the vision tower that the projector reads, counted from 1; 0 is the input of the first."""
    layers = config.vision_feature_layer
    layer = int(layers) if isinstance(layers, int) else int(layers[0])
    return layer if layer >= 0 else int(config.vision_config.num_hidden_layers) + 1 + layer


def _refused_tower(config: AlignGPTConfig) -> str | None:
    vision, layers = config.vision_config, config.vision_feature_layer
    if vision.model_type == "clip_vision_model":
        return "llama.cpp mixes up the class token of CLIP towers (the first patch is lost and positions are shifted)"
    if vision.model_type != "siglip_vision_model":
        return f"llama.cpp's LLaVA reads SigLIP towers, not {vision.model_type}"
    if not isinstance(layers, int) and len(layers) > 1:
        return f"the projector reads several layers of the vision tower ({list(layers)})"
    if not 1 <= feature_layer(config) <= vision.num_hidden_layers:
        return f"the projector reads layer {layers} of the vision tower, which is none of its blocks"
    if config.vision_feature_select_strategy != "full":
        return "the first image token is dropped, which llama.cpp does for towers with a class token only"
    if vision.hidden_act not in TOWER_GELU:
        return f"the vision tower's activation is {vision.hidden_act}, expected one of {', '.join(TOWER_GELU)}"
    if config.projector_hidden_act not in PROJECTOR_GELU:
        return f"the projector's activation is {config.projector_hidden_act}, expected gelu"
    if config.image_side != vision.image_size:
        return (
            f"the model reads images of {config.image_side} px with a tower for {vision.image_size} px, whose position "
            "embeddings llama.cpp does not resize"
        )
    if config.image_seq_length != (tokens := (vision.image_size // vision.patch_size) ** 2):
        return f"the model has {config.image_seq_length} tokens an image, but its tower has {tokens} patches"
    return None


def _refused_language_model(text: Any) -> str | None:
    kind = text.model_type
    if kind not in ARCHITECTURES:
        return f"the language model {kind} was not looked at in llama.cpp; {', '.join(ARCHITECTURES)} were"
    if text.hidden_act != "silu":
        return f"the language model's activation is {text.hidden_act}, expected silu"
    if getattr(text, "mlp_bias", False) or (kind != "qwen2" and getattr(text, "attention_bias", False)):
        return f"the layers of the language model {kind} have biases"
    window = getattr(text, "sliding_window", None)
    slides = "sliding_attention" in (getattr(text, "layer_types", None) or []) or kind == "mistral"
    if slides and window is not None and window < text.max_position_embeddings:
        return f"the language model attends to the last {window} tokens only (sliding_window)"
    rope = text.rope_parameters
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "the language model rotates only a part of each head (partial_rotary_factor)"
    scaled = rope.get("rope_type", "default")
    # Factors for each frequency, from which llama.cpp's Llama computes any scaling that does not depend on the text.
    if scaled not in ("default", "linear", "llama3") or (scaled != "default" and ARCHITECTURES[kind] != "LLAMA"):
        return f"the language model {kind} scales its positions ({scaled})"
    return None


def _refused_preprocessing(config: AlignGPTConfig, images: Any, *, square_images: bool) -> str | None:
    side = config.image_side
    if not (images.do_resize and images.do_rescale and images.do_normalize):
        return "the image processor leaves out resizing, rescaling or normalising"
    if abs(images.rescale_factor - 1 / 255) > 1e-9:
        return f"the image processor multiplies pixels by {images.rescale_factor}, expected 1/255"
    if images.resample is None or int(images.resample) != Resampling.BICUBIC:
        return f"the image processor's filter is resample: {images.resample}; llama.cpp's is bicubic (3)"
    size, crop = dict(images.size), dict(images.crop_size or {})
    squashes = size.get("height") == size.get("width") == side and not images.do_center_crop
    fits = size.get("shortest_edge") == side and crop.get("height") == crop.get("width") == side
    if not squashes and not (fits and images.do_center_crop):
        return f"the image processor does not make squares of {side} px (size: {size}, crop_size: {crop})"
    if not square_images:
        crops = "pads them with another colour" if getattr(images, "do_pad", False) else "crops or stretches them"
        return SQUARE.format(crops=crops)
    return None


def _refused_template(processor: AlignGPTProcessor) -> str | None:
    end = processor.turn_end()
    return f"the chat template ends answers with the text {end!r}, but a GGUF file names tokens only" if end else None
