"""The configuration of a vision tower of timm, read from the config.json of a timm checkpoint."""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

# Pillow's numbers of the filters that timm names.
RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


class TimmTowerConfig(PretrainedConfig):
    """Architecture of a vision transformer of timm, and the layout of its tokens.

    Args:
        architecture: its name in timm.
        model_args: further arguments of `timm.create_model`.
        image_size: side of the images in pixels.
        patch_size: side of a patch in pixels.
        hidden_size: width of a token.
        num_hidden_layers: number of blocks.
        num_register_tokens: number of tokens before the patches, apart from a class token.
        num_channels: channels of the images.
    """

    model_type = "timm_tower"

    def __init__(
        self,
        architecture: str = "",
        model_args: Mapping[str, Any] | None = None,
        image_size: int = 224,
        patch_size: int = 16,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_register_tokens: int = 0,
        num_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.architecture = architecture
        self.model_args = dict(model_args or {})
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_register_tokens = num_register_tokens
        self.num_channels = num_channels
        # `TimmWrapperModel` reads it.
        self.do_pooling = False


def is_timm_checkpoint(content: Mapping[str, Any]) -> bool:
    """Whether the content of a config.json is that of a timm checkpoint."""
    # transformers adds this `model_type` when it reads the file.
    is_other = content.get("model_type") not in (None, "timm_wrapper")
    return "architecture" in content and "pretrained_cfg" in content and not is_other
