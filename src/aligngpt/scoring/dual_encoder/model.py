"""A CLIP-style dual encoder built from an image tower and a text tower that were trained independently.

The towers stay frozen; one linear map per tower projects into a shared space. See `dual_encoder.fit` for the training
of the maps.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel, VisionTextDualEncoderConfig, VisionTextDualEncoderModel
from transformers.models.clip.modeling_clip import CLIPOutput

from aligngpt.errors import AlignGPTError
from aligngpt.model.backbones import LOADING_ERRORS
from aligngpt.model.own_code import refuse_own_code
from aligngpt.model.whole_weights import load_whole

ImagePooling = Literal["class", "mean"]


class DualEncoderError(AlignGPTError):
    """A tower cannot be loaded or cannot be used in a dual encoder, or there are too few pairs to train on."""


@strict
class DualEncoderConfig(VisionTextDualEncoderConfig):
    """Two towers (`vision_config`, `text_config`, any that `AutoModel` supports) and their shared space.

    Args:
        image_pooling: how an image is pooled from the last hidden state, taken before the tower's final normalisation:
            `class` for its first token, `mean` for the mean of all its tokens.
    """

    model_type = "aligngpt_dual_encoder"

    image_pooling: ImagePooling = "class"


class DualEncoder(VisionTextDualEncoderModel):
    """Two towers, two linear maps without bias and a temperature; scores are cosines in the shared space.

    Unlike its parent class it pools the towers' hidden states itself: text towers are often trained for the mean of
    their tokens rather than for their pooler, and image towers often give better features before their last layers.

    Example:
        >>> model = assemble_dual_encoder("dinov2-small-56px", "all-minilm-l6-v2", vision_layers=8)
        >>> image = model.get_image_features(pixel_values)  # (images, projection_dim)
    """

    config: DualEncoderConfig
    config_class = DualEncoderConfig

    def pooled_image(self, pixel_values: Tensor) -> Tensor:
        """One vector per image from the tower alone: `(images, 3, height, width)` → `(images, vision hidden)`."""
        hidden = self.vision_model(pixel_values=pixel_values, output_hidden_states=True).hidden_states[-1]
        return hidden[:, 0] if self.config.image_pooling == "class" else hidden.mean(dim=1)

    def pooled_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Mean over the unmasked tokens: `(texts, length)` → `(texts, text hidden)`."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.text_model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> Tensor:
        """Image features in the shared space, not normalised: `(images, projection_dim)`."""
        return self.visual_projection(self.pooled_image(pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        """Text features in the shared space, not normalised: `(texts, projection_dim)`."""
        return self.text_projection(self.pooled_text(input_ids, attention_mask))

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> CLIPOutput:
        """Compare every image with every text, as `CLIPModel` does: `logits_per_image (images, texts)`."""
        image = F.normalize(self.get_image_features(pixel_values), dim=-1)
        text = F.normalize(self.get_text_features(input_ids, attention_mask), dim=-1)
        logits = self.logit_scale.exp() * image @ text.T
        return CLIPOutput(logits_per_image=logits, logits_per_text=logits.T, image_embeds=image, text_embeds=text)


def assemble_dual_encoder(
    image_tower: str | Path,
    text_tower: str | Path,
    *,
    vision_layers: int | None = None,
    image_pooling: ImagePooling = "class",
    projection_dim: int = 128,
) -> DualEncoder:
    """Build a dual encoder from two towers, with untrained linear maps.

    Args:
        image_tower: folder or hub name of a vision transformer.
        text_tower: folder or hub name of a text encoder.
        vision_layers: number of the image tower's first layers to keep; all when None. The last layers are often tuned
            for another task, and dropping them saves time.
        image_pooling: see `DualEncoderConfig`.
        projection_dim: width of the shared space.

    Raises:
        DualEncoderError: a tower cannot be loaded, lacks weights, brings code of its own, is not a single tower, or has
            fewer layers than `vision_layers`.
    """
    for source in (image_tower, text_tower):
        refuse_own_code(source, "the tower", DualEncoderError, unless_known=True)
    try:
        # The towers' own poolers are not used.
        vision, text = (
            load_whole(
                AutoModel,
                source,
                "the tower",
                DualEncoderError,
                may_lack=("pooler.",),
                dtype=torch.float32,
                trust_remote_code=False,
            )
            for source in (image_tower, text_tower)
        )
    except LOADING_ERRORS as error:
        raise DualEncoderError(f"the towers {image_tower} and {text_tower} cannot be loaded: {error}") from error
    for tower, source in ((vision, image_tower), (text, text_tower)):
        if not hasattr(tower.config, "hidden_size"):
            raise DualEncoderError(f"{source} is a {type(tower).__name__}, expected a transformer with a single tower")
        # Do not leak local paths into the saved model.
        tower.config._name_or_path = ""
    if vision_layers is not None:
        _keep_layers(vision, vision_layers, image_tower)
    config = DualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=projection_dim, image_pooling=image_pooling
    )
    return DualEncoder(config, vision_model=vision, text_model=text).eval()


def _keep_layers(tower: PreTrainedModel, count: int, source: str | Path) -> None:
    """Remove all but the first `count` layers from a tower, and update its configuration."""
    layers = tower.config.num_hidden_layers
    if not 1 <= count <= layers:
        raise DualEncoderError(f"{source} has {layers} layers, cannot keep {count}")
    stacks = [module for module in tower.modules() if isinstance(module, nn.ModuleList) and len(module) == layers]
    if len(stacks) != 1:
        raise DualEncoderError(f"{source}: its {layers} layers are not in a single stack; keep all of them")
    del stacks[0][count:]
    settings = tower.config.to_dict()
    # The layers a detection head would read; they may be among the removed ones.
    for name in ("out_features", "out_indices", "stage_names"):
        settings.pop(name, None)
    tower.config = type(tower.config).from_dict(settings | {"num_hidden_layers": count})
