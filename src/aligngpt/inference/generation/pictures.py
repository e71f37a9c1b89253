"""The image features and the alignment embedding of a prompt, computed once for all turns of a conversation."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from aligngpt.inference.generation.prompts import Prompt, as_row
from aligngpt.model.modeling import AlignGPTForConditionalGeneration

KEPT_PICTURES = 16


class Seen(NamedTuple):
    """What the model takes from the images of a prompt.

    Attributes:
        features: features of each image, `(tokens, hidden)`.
        embedding: alignment embedding `(1, hidden)`; None for a model without an alignment module.
        weights: the gate's weights for levels 1…N-1; None if no gate ran.
    """

    features: list[Tensor]
    embedding: Tensor | None
    weights: tuple[float, ...] | None


class Pictures:
    """Computes what the model takes from images, and keeps the features of the latest ones.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: AlignGPTForConditionalGeneration) -> None:
        self.model = model
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def look(self, prompts: Sequence[Prompt]) -> list[Seen | None]:
        """What the model takes from the images of each prompt; None for prompts without images.

        Images of all prompts go through the vision tower together, each different one once.
        """
        self._encode(prompts)
        return [self._seen(prompt) if prompt.pixels is not None else None for prompt in prompts]

    def _encode(self, prompts: Sequence[Prompt]) -> None:
        new: dict[str, Tensor] = {}
        for prompt in prompts:
            for name, image in zip(prompt.picture_hashes, () if prompt.pixels is None else prompt.pixels, strict=True):
                if name in self._kept:
                    self._kept.move_to_end(name)
                else:
                    new[name] = image
        if new:
            found = self.model.model.get_image_features(torch.stack(list(new.values())), return_dict=True)
            self._kept.update(zip(new, found.pooler_output, strict=True))
        needed = {name for prompt in prompts for name in prompt.picture_hashes}
        for name in list(self._kept):
            if len(self._kept) <= max(KEPT_PICTURES, len(needed)):
                break
            if name not in needed:
                del self._kept[name]

    def _seen(self, prompt: Prompt) -> Seen:
        body = self.model.model
        features = [self._kept[name] for name in prompt.picture_hashes]
        if body.alignment is None:
            return Seen(features, None, None)
        level = None if prompt.level is None else torch.tensor([prompt.level], device=self.model.device)
        aligned = body.alignment_embeddings(
            as_row(prompt.gate_ids, self.model.device), None, image_features=features, alignment_level=level
        )
        weights = None if aligned.weights is None else tuple(aligned.weights[0].float().tolist())
        return Seen(features, aligned.embedding, weights)


def encoder_outputs(seen: Sequence[Seen | None]) -> dict[str, BaseModelOutputWithPooling] | None:
    """What `forward` takes in place of pixels: image features and alignment embeddings in the order of their tokens."""
    found = [one for one in seen if one is not None]
    if not found:
        return None
    outputs = {"image": BaseModelOutputWithPooling(pooler_output=[image for one in found for image in one.features])}
    embeddings = [one.embedding for one in found if one.embedding is not None]
    if embeddings:
        outputs["align"] = BaseModelOutputWithPooling(pooler_output=embeddings)
    return outputs
