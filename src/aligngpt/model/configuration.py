"""The configuration of an AlignGPT model: LLaVA's, plus how the alignment embedding is formed."""

from collections.abc import Sequence
from itertools import pairwise
from math import isqrt
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import LlavaConfig

from aligngpt.alignment.modes import AlignmentMode
from aligngpt.model.multiscale import crops_per_image

TextPooling = Literal["instruction", "all"]


@strict
class AlignGPTConfig(LlavaConfig):
    """A `LlavaConfig` (vision tower, projector, language model) with an alignment module.

    Args:
        alignment: how the alignment embedding is formed if no level is given: `adaptive` (level N plus a gated mix
            of the others; the paper), `global` (level N), `local` (the mix alone), `average` (level N plus the mean of
            the others), `mean` (the mean of the table; no row of the paper), or `none` (no alignment embedding: a plain
            LLaVA).
        num_alignment_levels: N, at least 2; 8 in the published models.
        align_token_index: id of `<align>`, whose embedding the alignment module computes.
        gate_grid: side of the similarity map that the gate reads; 24 (576 image tokens) in the published models.
        gate_hidden_size: width of the gate's hidden layer.
        text_pooling: which text tokens the gate compares the image with. `instruction`: those before the first
            response, the same in training and at inference. `all`: every text token after BOS, as in the published
            training code (which includes the responses, although they do not exist yet at inference).
        lm_head_bias: whether the language model's output layer has a bias (Phi's has).
        image_scales: sides in pixels at which each image is read, ascending, multiples of the first (see
            `aligngpt.model.multiscale`); None for the tower's own side only.
        merge_image_tokens: side of the square of neighbouring patches that become one image token (see
            `aligngpt.model.token_merging`); 1 in the published models: every patch is an image token.
        vision_register_tokens: number of tokens of the vision tower between class token and patches (DINOv2 with
            registers has some); they are dropped. 0 in the published models.
    """

    model_type = "aligngpt"
    attribute_map = {  # noqa: RUF012
        "image_token_id": "image_token_index",
        "align_token_id": "align_token_index",
    }
    # Outputs that an evaluation loop cannot gather or does not expect: predictions are the logits alone.
    keys_to_ignore_at_inference = [  # noqa: RUF012
        "cache",
        "image_outputs",
        "alignment_weights",
        "token_losses",
        "token_predictions",
    ]

    alignment: AlignmentMode = "adaptive"
    num_alignment_levels: int = 8
    align_token_index: int = 32001
    gate_grid: int = 24
    gate_hidden_size: int = 256
    text_pooling: TextPooling = "instruction"
    lm_head_bias: bool = False
    image_scales: list[int] | None = None
    merge_image_tokens: int = 1
    vision_register_tokens: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.num_alignment_levels < 2:
            raise ValueError(f"num_alignment_levels must be at least 2, got {self.num_alignment_levels}")
        if self.image_scales is not None:
            check_scales(self.image_scales)
        if self.merge_image_tokens < 1:
            raise ValueError(f"merge_image_tokens must be at least 1, got {self.merge_image_tokens}")
        if self.vision_register_tokens < 0:
            raise ValueError(f"vision_register_tokens must not be negative, got {self.vision_register_tokens}")

    @property
    def leading_tokens(self) -> int:
        """Number of vision tower tokens before the patches: the class token, if any, and the registers."""
        return (self.vision_feature_select_strategy == "default") + self.vision_register_tokens

    @property
    def image_side(self) -> int | None:
        """Side in pixels of the images that the model reads; None if the patches do not tell.

        Not always the tower's own `image_size`: a tower that interpolates its positions may read images of any size.
        """
        if self.image_scales:
            return self.image_scales[-1]
        patch = getattr(self.vision_config, "patch_size", None)
        grid = isqrt(self.image_seq_length) * self.merge_image_tokens
        return (
            grid * patch
            if isinstance(patch, int) and isqrt(self.image_seq_length) ** 2 == self.image_seq_length
            else None
        )

    @property
    def tower_tokens(self) -> int:
        """Number of tokens that the vision tower computes per image, over all crops."""
        crops = crops_per_image(self.image_scales) if self.image_scales else 1
        return crops * (self.image_seq_length * self.merge_image_tokens**2 + self.leading_tokens)

    @property
    def placeholder_ids(self) -> list[int]:
        """Ids of `<image>` and, if the model has it, `<align>`: never part of an answer."""
        return [index for index in (self.image_token_index, self.align_token_index) if index >= 0]


def check_scales(scales: Sequence[int]) -> None:
    """Raise a ValueError unless these are sides in pixels at which an image can be read; see `image_scales`."""
    rising = all(small < large for small, large in pairwise(scales))
    if not scales or scales[0] < 1 or not rising or any(scale % scales[0] for scale in scales):
        raise ValueError(f"image_scales must be ascending multiples of the first, as in 336, 672, 1008; got {scales}")
