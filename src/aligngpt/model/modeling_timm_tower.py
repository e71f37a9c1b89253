"""Vision transformers of timm (Perception Encoder, EVA-02, …) as vision towers.

transformers' `TimmWrapperModel` creates and loads the network. Its hidden states lack the input of the first block and
the tokens before the patches, so `TimmTowerModel` collects them itself.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperModel
from transformers.utils import is_timm_available

from aligngpt.model.backbones import BackboneError
from aligngpt.model.configuration_timm_tower import RESAMPLING, TimmTowerConfig


class TimmTowerModel(TimmWrapperModel):
    """A vision transformer of timm whose hidden states are numbered as those of transformers' towers.

    Raises:
        BackboneError: timm is not installed.
    """

    config: TimmTowerConfig
    config_class = TimmTowerConfig

    def __init__(self, config: TimmTowerConfig) -> None:
        _require_timm(config.architecture)
        super().__init__(config)

    def _timm_model_supports_gradient_checkpointing(self) -> bool:
        # timm would checkpoint all blocks as one, from which no hidden state can be taken.
        return False

    def forward(
        self, pixel_values: Tensor, output_hidden_states: Any = None, return_dict: bool | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """All hidden states of images.

        Args:
            pixel_values: `(images, channels, height, width)`.
            output_hidden_states, return_dict: accepted as in other towers; all states are always returned.

        Returns:
            `last_hidden_state` `(images, tokens, hidden)` after timm's last norm, and `hidden_states`: the input of
            the first block and the output of each block, of the same shape.
        """
        states: list[Tensor] = []
        blocks = list(self.timm_model.blocks)
        hooks = [block.register_forward_pre_hook(lambda _, given: states.append(given[0])) for block in blocks]
        hooks.append(blocks[-1].register_forward_hook(lambda _, __, output: states.append(output)))
        try:
            last = self.timm_model.forward_features(pixel_values.to(self.device, self.dtype))
        finally:
            for hook in hooks:
                hook.remove()
        return BaseModelOutput(last_hidden_state=last, hidden_states=tuple(states))


def timm_tower_config(content: Mapping[str, Any], source: str | Path) -> TimmTowerConfig:
    """The configuration of a timm checkpoint's tower; the network is created without values to measure it.

    Args:
        content: the content of its config.json.
        source: folder or hub name, for messages.

    Raises:
        BackboneError: timm is not installed or does not know the architecture, it is not a transformer that splits
            images into square patches, or the images are not square with three channels.
    """
    timm = _require_timm(source)
    architecture, settings = str(content["architecture"]), _settings(content)
    arguments = dict(content.get("model_args") or {})
    channels, height, width = settings.get("input_size") or (3, 0, 0)
    if channels != 3 or height != width or not height:
        raise BackboneError(
            f"{source}: its `input_size` is {settings.get('input_size')}, expected square images of 3 channels, as in "
            "[3, 224, 224]"
        )
    try:
        with torch.device("meta"):
            network = timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)
    # timm raises errors of many kinds for an unknown name or argument.
    except Exception as error:
        raise BackboneError(
            f"{source}: timm {timm.__version__} cannot create {architecture} ({error}); upgrade timm, or correct "
            "`architecture` and `model_args` in its config.json"
        ) from error
    blocks, patch = getattr(network, "blocks", None), getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or patch is None or patch[0] != patch[1]:
        raise BackboneError(
            f"{source}: timm's {architecture} is not a vision transformer with blocks and square patches; use one that "
            "is, such as vit_pe_core_large_patch14_336 or eva02_large_patch14_clip_336"
        )
    return TimmTowerConfig(
        architecture=architecture,
        model_args=arguments,
        image_size=int(height),
        patch_size=int(patch[0]),
        hidden_size=int(network.embed_dim),
        num_hidden_layers=len(blocks),
        num_register_tokens=int(getattr(network, "num_reg_tokens", 0) or 0),
        num_channels=int(channels),
    )


def timm_preprocessing(content: Mapping[str, Any], source: str | Path) -> SimpleNamespace:
    """The settings of an image processor in a timm checkpoint: mean, standard deviation, filter and side.

    timm's `crop_pct`, by which it cuts off the border in evaluation, is not used: the whole image is read.

    Raises:
        BackboneError: a setting is missing, or its filter is unknown.
    """
    settings = _settings(content)
    mean, std, resampling = settings.get("mean"), settings.get("std"), str(settings.get("interpolation"))
    if not mean or not std or resampling not in RESAMPLING:
        raise BackboneError(
            f"{source}: `pretrained_cfg` in its config.json needs mean, std and interpolation (one of "
            f"{', '.join(RESAMPLING)}); found {mean}, {std} and {resampling}"
        )
    side = int((settings.get("input_size") or (3, 0, 0))[1])
    return SimpleNamespace(
        image_mean=list(mean),
        image_std=list(std),
        resample=RESAMPLING[resampling],
        size={"height": side, "width": side},
        do_normalize=True,
        do_rescale=True,
    )


def _settings(content: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = content["pretrained_cfg"]
    return settings if isinstance(settings, Mapping) else {}


def _require_timm(source: str | Path) -> Any:
    if not is_timm_available():
        raise BackboneError(
            f"{source} is a vision tower of timm, which is not installed; run `pip install 'aligngpt[timm]'`"
        )
    try:
        import timm
    # A torchvision that was built for another torch raises RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise BackboneError(
            f"{source} is a vision tower of timm, which cannot be imported: {error}; install the torchvision that "
            "belongs to this torch"
        ) from error
    return timm
