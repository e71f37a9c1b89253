"""What AlignGPT adds to transformers' `generate`: the gate runs once, before the first token.

transformers encodes the images of a prompt before it reads the prompt, and passes their features on as
`mm_encoder_outputs["image"]`. The alignment embeddings are computed right after that and passed along as
`mm_encoder_outputs["align"]`: one row per `<align>` token, just as there is one per `<image>` token. So they follow
the images through caches, beams, chunks of a long prompt and assistants without further code here.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

GATE_INPUTS = ("instruction_mask", "alignment_level", "alignment_weights")


class AlignGPTGenerationMixin(GenerationMixin):
    """`GenerationMixin` for a model whose prompts have an instruction, any number of images and an `<align>` token."""

    config: Any
    model: Any

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any], model_input_name: str | None, generation_config: Any
    ) -> dict[str, Any]:
        """Encode the images, as transformers does, and form the alignment embeddings from them and the whole prompt.

        A prompt that continues a cache is read from the end of the cache: an earlier `<align>` was handled when it was
        first read.
        """
        model_kwargs = super()._maybe_prepare_encoder_kwargs_for_generation(
            inputs_tensor, model_kwargs, model_input_name, generation_config
        )
        features = model_kwargs.get("mm_encoder_outputs") or {}
        gate_inputs = {name: model_kwargs.pop(name, None) for name in GATE_INPUTS}
        self.model.check_alignment(gate_inputs["alignment_level"], gate_inputs["alignment_weights"])
        if self.model.alignment is None or features.get("image") is None or features.get("align") is not None:
            return model_kwargs
        embeds = inputs_tensor if model_input_name == "inputs_embeds" else model_kwargs.get("inputs_embeds")
        ids = model_kwargs.get("input_ids") if model_input_name == "inputs_embeds" else inputs_tensor
        start = _cached_length(model_kwargs.get("cache"), inputs_tensor)
        prompt = (_tail(ids, start), None) if embeds is None else (None, _tail(embeds, start))
        is_align = self.model.align_positions(*prompt)
        if is_align.any():
            gate_inputs["instruction_mask"] = _tail(gate_inputs["instruction_mask"], start)
            with torch.no_grad():
                aligned = self.model.alignment_embeddings(
                    *prompt,
                    **gate_inputs,
                    image_features=features["image"].pooler_output,
                    attention_mask=_tail(model_kwargs.get("attention_mask"), start),
                )
            rows = aligned.embedding[is_align.any(dim=-1)].split(1)
            features["align"] = BaseModelOutputWithPooling(pooler_output=list(rows))
        return model_kwargs

    def _expand_multimodal_outputs(
        self,
        input_ids: Tensor | None,
        mm_encoder_output: dict[str, Any],
        expand_size: int = 1,
        inputs_embeds: Tensor | None = None,
    ) -> dict[str, Any]:
        """Repeat each sample's features for its beams: its images as one group, and its alignment embedding."""
        expanded: dict[str, Any] = super()._expand_multimodal_outputs(
            input_ids, mm_encoder_output, expand_size, inputs_embeds
        )
        if (align := expanded.get("align")) is not None:
            align.pooler_output = [row for row in align.pooler_output for _ in range(expand_size)]
        return expanded


def _cached_length(cache: Any, prompt: Tensor | None) -> int:
    """Number of prompt tokens that are already cached; 0 unless the prompt repeats the cached tokens."""
    length = 0 if cache is None else int(cache.get_seq_length())
    return length if prompt is not None and prompt.shape[1] > length else 0


def _tail(tensor: Any, start: int) -> Any:
    """`(batch, length, …)` from position `start` on; None and masks of other shapes are returned unchanged."""
    return tensor[:, start:] if start and isinstance(tensor, Tensor) and tensor.ndim in (2, 3) else tensor
