"""The projector: from the vision tower's patch features to the embeddings of the image tokens."""

from torch import Tensor, nn
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.multiscale import merge_scales
from aligngpt.model.token_merging import merge_tokens


class AlignGPTProjector(LlavaMultiModalProjector):
    """LLaVA's projector, applied to patches only.

    LLaVA's feature selection drops a class token; register tokens before the patches are dropped here. If the
    configuration has `image_scales`, the scales of each image are then merged, and with `merge_image_tokens`
    neighbouring patches are.
    """

    linear_1: nn.Linear

    def __init__(self, config: AlignGPTConfig) -> None:
        super().__init__(config)
        self.scales = tuple(config.image_scales or ())
        self.registers = config.vision_register_tokens
        self.merge = config.merge_image_tokens
        wider = max(1, len(self.scales)) * self.merge**2
        if wider > 1:
            first = self.linear_1
            self.linear_1 = nn.Linear(wider * first.in_features, first.out_features, bias=first.bias is not None)

    def forward(self, image_features: Tensor) -> Tensor:
        """Project the tower's features, `(images · crops, registers + patches, width)` → `(images, P, hidden)`."""
        return self.project(self.merged(image_features[:, self.registers :]))

    def merged(self, patches: Tensor) -> Tensor:
        """The projection's input, `(images · crops, patches, tower hidden)` → `(images, P, width)`.

        `width` is `scales · merge² · tower hidden`.
        """
        return merge_tokens(merge_scales(patches, self.scales) if self.scales else patches, self.merge)

    def project(self, merged: Tensor) -> Tensor:
        """The projection alone, `(images, P, width)` → `(images, P, hidden)`."""
        projected: Tensor = super().forward(merged)
        return projected
