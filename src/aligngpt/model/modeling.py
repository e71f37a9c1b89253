"""AlignGPT: a LLaVA with one more token.

Every sample with an image has the token `<align>` right after BOS (or first). Its embedding is not looked up: the
alignment module forms it from the sample's level (pre-training) or from the image and the instruction (afterwards),
just as the embeddings of the `<image>` tokens come from the vision tower. Everything else is LLaVA.
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaModelOutputWithPast,
    LlavaPreTrainedModel,
)
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple

from aligngpt.alignment.module import AlignmentModule, AlignmentOutput, mean_text_embedding
from aligngpt.model.backbones import network_class
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.generation import AlignGPTGenerationMixin
from aligngpt.model.layout import Layout, check_align, check_no_images
from aligngpt.model.loss import ROWS_AT_ONCE, linear_cross_entropy
from aligngpt.model.multiscale import crops_of_scales
from aligngpt.model.packing.pieces import Pieces
from aligngpt.model.projector import AlignGPTProjector
from aligngpt.model.segments import Samples, readable_text, sample_of_image

IGNORE_INDEX = -100
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap")
LOGIT_SETTINGS = ("logit_scale", "lm_head_multiplier", "logits_scaling", *SOFT_CAPS)
"""Language model settings that modify the logits; see `_logits`."""

Forward = TypeVar("Forward", bound=Callable[..., Any])


def _hf_signature(forward: Forward) -> Forward:
    """Support `return_dict=False` and `past_key_values` as an alias of `cache`, as LLaVA does."""
    decorated: Forward = can_return_tuple(deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")(forward))
    return decorated


@dataclass
class AlignGPTModelOutput(LlavaModelOutputWithPast):
    """`LlavaModelOutputWithPast` with the gate's `alignment_weights (batch, levels - 1)`, None if it did not run.

    The rows of samples without an image are meaningless.
    """

    alignment_weights: Tensor | None = None


@dataclass
class AlignGPTOutput(LlavaCausalLMOutputWithPast):
    """`LlavaCausalLMOutputWithPast` with further fields.

    Attributes:
        alignment_weights: weights from the gate, `(batch, levels - 1)`; None if the gate did not run. The rows of
            samples without an image are meaningless.
        token_losses: loss per counted token, `(counted,)`, in reading order, without gradients; None without labels.
        token_predictions: the most likely token at each of these positions, `(counted,)`; None without labels, or if
            gradients are computed.
    """

    alignment_weights: Tensor | None = None
    token_losses: Tensor | None = None
    token_predictions: Tensor | None = None


class AlignGPTPreTrainedModel(LlavaPreTrainedModel):
    """Base of the two classes below: initialises modules whose weights are in no file."""

    config: AlignGPTConfig
    _no_split_modules = ["AlignmentModule"]  # noqa: RUF012

    @classmethod
    def is_custom_code(cls) -> bool:
        """Whether the class comes from a model repository; transformers asks this when it loads a model.

        The default is True for every class outside transformers. Loading then skips the initialisation of modules
        without parameters of their own, where some language models (Falcon-H1) fill buffers that no file holds.
        """
        return cls.is_remote_code()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # Loading marks the tensors read from a file; only a level table that was not is initialised here.
        if isinstance(module, AlignmentModule) and not getattr(module.levels, "_is_hf_initialized", False):
            module.reset_level_table()


class AlignGPTModel(AlignGPTPreTrainedModel, LlavaModel):
    """Vision tower, projector, alignment module and language model, without the language modeling head."""

    config: AlignGPTConfig

    def __init__(self, config: AlignGPTConfig) -> None:
        # Registers a tower that transformers leaves out of AutoModel, which builds it next.
        network_class(config.vision_config)
        super().__init__(config)
        self.multi_modal_projector = AlignGPTProjector(config)
        self.alignment: AlignmentModule | None = None
        if config.alignment != "none":
            self.alignment = AlignmentModule(
                config.num_alignment_levels,
                config.get_text_config().hidden_size,
                gate_grid=config.gate_grid,
                gate_hidden_size=config.gate_hidden_size,
            )
        self.post_init()

    def train(self, mode: bool = True) -> "AlignGPTModel":
        """As in torch, but a frozen vision tower stays in evaluation mode.

        In training mode some towers (DINOv3, Sapiens 2) move the positions of the patches at random.
        """
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.vision_tower.parameters()):
            self.vision_tower.eval()
        return self

    @_hf_signature
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        instruction_mask: Tensor | None = None,
        alignment_level: Tensor | None = None,
        alignment_weights: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        pieces: Pieces | Tensor | None = None,
        vision_features: Tensor | None = None,
        layout: Layout | None = None,
        **kwargs: Any,
    ) -> AlignGPTModelOutput:
        """Compute the hidden states of a batch of samples, each with any number of images.

        Args:
            input_ids: `(batch, length)`; `<image>` once per image token, `<align>` once in each sample with an image.
            pixel_values: `(images, channels, height, width)`, in the order of their tokens in the batch.
            attention_mask: `(batch, length)`, zero at padding (left or right); or `(batch, 1, length, length)`, the
                positions each one attends to; as this does not mark padding, also give `instruction_mask` and
                `position_ids`.
            instruction_mask: `(batch, length)`, non-zero at the text the gate may read; every text token after
                `<align>` when None. Image tokens and padding are ignored. Has no effect if the configuration has
                `text_pooling: all`.
            alignment_level: force a level 1…N, `(batch,)`, or one for all samples. The level of each pair in
                pre-training.
            alignment_weights: replace the gate's weights, `(batch, levels - 1)`.
            pieces: of a packed row; also as a table `(pieces, 4)`. `alignment_level` and
                `alignment_weights` then have one entry per sample of the row. Requires the attention implementation
                `aligngpt_packed`.
            mm_encoder_outputs: precomputed by `generate`: features of the images (`image`) and the alignment
                embeddings (`align`), in the order of their tokens.
            vision_features: output of `tower_features`, `(images, P, scales · merge² · tower hidden)`, in place of
                `pixel_values`.
            layout: of this batch, whose checks have been made; nothing then waits for a GPU.
            **kwargs: for the language model; `cache` above all.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds` are given, the images do not match their
                tokens, or a level or weights are given that this model does not use.
        """
        self.check_alignment(alignment_level, alignment_weights)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        features = dict(mm_encoder_outputs or {})
        has_images = pixel_values is not None or vision_features is not None
        if has_images and (features or (pixel_values is not None and vision_features is not None)):
            raise ValueError(
                "give only one of pixel_values, vision_features and mm_encoder_outputs: the last two are computed from "
                "the first"
            )
        if pixel_values is not None:
            features["image"] = self.get_image_features(pixel_values, return_dict=True)
        elif vision_features is not None:
            projected = self.multi_modal_projector.project(vision_features)
            features["image"] = BaseModelOutputWithPooling(pooler_output=list(projected))
        elif layout is None and not features and input_ids is not None and input_ids.shape[1] > 1:
            check_no_images(input_ids == self.config.image_token_id)
        embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        if pieces is not None:
            kwargs["pieces"] = Pieces.of(pieces).to(embeds.device)
        samples = Samples.of_rows(embeds) if pieces is None else Samples.of_pieces(kwargs["pieces"])
        weights = None
        is_align = self.align_positions(input_ids, embeds)
        if (images := features.get("image")) is not None:
            image_tokens = torch.cat(list(images.pooler_output)).to(embeds.device, embeds.dtype)
            is_image = self._image_positions(input_ids, embeds, image_tokens, layout)
            # A later chunk of a long prompt may have image tokens, but its <align> was already handled.
            begins = has_images or ("align" not in features and bool(is_align.any()))
            if self.alignment is not None and begins:
                aligned = self.alignment_embeddings(
                    input_ids,
                    embeds,
                    image_features=images.pooler_output,
                    attention_mask=attention_mask,
                    instruction_mask=instruction_mask,
                    alignment_level=alignment_level,
                    alignment_weights=alignment_weights,
                    samples=samples,
                    layout=layout,
                )
                weights = aligned.weights
                embedding = aligned.embedding.to(embeds.device, embeds.dtype)
                # An unpacked row has one embedding for all positions; in a packed row each has that of its sample.
                embedding = embedding.unsqueeze(1) if pieces is None else embedding[samples.of_token]
                embeds = torch.where(is_align.unsqueeze(-1), embedding, embeds)
            if layout is None:
                embeds = embeds.masked_scatter(is_image.unsqueeze(-1), image_tokens)
            else:
                embeds = embeds.flatten(0, 1).index_copy(0, layout.image_tokens, image_tokens).view_as(embeds)
        elif self.training and torch.is_grad_enabled():
            embeds = self._with_image_parts(embeds)
        if (align := features.get("align")) is not None:
            rows = torch.cat(list(align.pooler_output)).to(embeds.device, embeds.dtype)
            embeds = embeds.masked_scatter(is_align.unsqueeze(-1), rows)

        outputs = self.language_model(
            attention_mask=self._additive_mask(attention_mask, embeds),
            position_ids=position_ids,
            inputs_embeds=embeds,
            **self._per_layer_inputs(input_ids),
            **kwargs,
        )
        return AlignGPTModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            cache=outputs.get("cache"),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            image_outputs=features.get("image"),
            alignment_weights=weights,
        )

    def check_alignment(self, level: Any, weights: Tensor | None) -> None:
        """Raise a ValueError if a level or weights are given to a model without an alignment module."""
        if self.alignment is None and (level is not None or weights is not None):
            raise ValueError(
                "this model has no alignment module (alignment: none), so alignment_level and alignment_weights would "
                "have no effect; leave them out"
            )

    def _with_image_parts(self, embeds: Tensor) -> Tensor:
        """Embeddings of a batch without images, unchanged in value but with projector and gate in the autograd graph.

        In training on several devices, each must include every trained part in every step: a device with a text-only
        batch would otherwise leave the others waiting.
        """
        parts = [
            self.vision_tower,
            self.multi_modal_projector,
            *([self.alignment] if self.alignment is not None else []),
        ]
        if not any(parameter.requires_grad for part in parts for parameter in part.parameters()):
            return embeds
        features = self.get_image_features(self.blank_picture(), return_dict=True)
        image_tokens = torch.stack(list(features.pooler_output))
        nothing = 0 * image_tokens.sum()
        if self.alignment is not None:
            aligned = self.alignment(image_tokens, image_tokens.new_zeros(1, image_tokens.shape[-1]))
            nothing = nothing + 0 * aligned.embedding.sum()
        return embeds + nothing.to(embeds.device, embeds.dtype)

    def blank_picture(self) -> Tensor:
        """Pixels of one blank image as large as those the model reads, `(1, channels, height, width)`."""
        vision = self.config.vision_config
        side = self.config.image_side
        sides = vision.image_size if side is None else side
        height, width = (sides, sides) if isinstance(sides, int) else sides
        tower = next(self.vision_tower.parameters())
        return torch.zeros(1, vision.num_channels, height, width, device=tower.device, dtype=tower.dtype)

    def get_image_features(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As `LlavaModel.get_image_features`, at each of the configuration's `image_scales`.

        Only the patch tokens of the tower are projected; see `AlignGPTProjector` on register tokens.
        """
        if self.config.image_scales:
            pixel_values = crops_of_scales(pixel_values, self.config.image_scales)
        return super().get_image_features(pixel_values, *args, **kwargs)

    def tower_features(self, pixel_values: Tensor) -> Tensor:
        """The part of `get_image_features` before the projection, at each of the configuration's `image_scales`.

        Args:
            pixel_values: `(images, channels, height, width)`.

        Returns:
            The `vision_features` argument of `forward`, `(images, P, scales · merge² · tower hidden)`; with several
            `vision_feature_layer`, their hidden states are concatenated.
        """
        scales = self.config.image_scales
        pictures = crops_of_scales(pixel_values, scales) if scales else pixel_values
        layers = self.config.vision_feature_layer
        states = self.vision_tower(pictures, output_hidden_states=layers, return_dict=True).hidden_states
        features = torch.cat([states[layer] for layer in ([layers] if isinstance(layers, int) else layers)], dim=-1)
        merged: Tensor = self.multi_modal_projector.merged(features[:, self.config.leading_tokens :])
        return merged

    def alignment_embeddings(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        *,
        image_features: list[Tensor],
        attention_mask: object = None,
        instruction_mask: Tensor | None = None,
        alignment_level: Tensor | None = None,
        alignment_weights: Tensor | None = None,
        samples: Samples | None = None,
        layout: Layout | None = None,
    ) -> AlignmentOutput:
        """The alignment embedding of each sample of a batch, from its level or from its images and its instruction.

        Args:
            image_features: projected tokens of each image, `(P, hidden)` each.
            input_ids, inputs_embeds, attention_mask, instruction_mask, alignment_level, alignment_weights, layout: see
                `forward`.
            samples: which sample each token belongs to; each row is a sample when None.

        Returns:
            Embeddings `(samples, hidden)` and weights `(samples, levels - 1)`; the rows of samples without an image
            are meaningless.

        Raises:
            ValueError: a sample with images has no `<align>`, or several.
        """
        assert self.alignment is not None
        embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        is_align = self.align_positions(input_ids, embeds)
        image_tokens = torch.stack(list(image_features)).to(embeds.device, embeds.dtype)
        is_image = self._image_positions(input_ids, embeds, image_tokens, layout)
        samples = samples or Samples.of_rows(embeds)
        if layout is None:
            check_align(is_align, is_image, samples)
        if self.config.text_pooling == "all":
            instruction_mask = None
        readable = readable_text(is_align, is_image, attention_mask, instruction_mask, samples)
        packed = samples.number != len(embeds)
        text = mean_text_embedding(embeds, readable, *(reversed(samples) if packed else ()))
        output: AlignmentOutput = self.alignment(
            image_tokens,
            text,
            sample_of_image(is_image, len(image_tokens), samples) if layout is None else layout.sample_of_image,
            mode=self.config.alignment,
            level=alignment_level,
            weights=alignment_weights,
        )
        return output

    def _image_positions(
        self, input_ids: Tensor | None, embeds: Tensor, image_tokens: Tensor, layout: Layout | None
    ) -> Tensor:
        """Positions of the image tokens, boolean `(batch, length)`.

        Raises:
            ValueError: there are not as many as `image_tokens (…, hidden)`.
        """
        if layout is None or input_ids is None:
            positions: Tensor = self.get_placeholder_mask(input_ids, embeds, image_tokens)[..., 0]
            return positions
        if len(layout.image_tokens) != (found := image_tokens.shape[:-1].numel()):
            raise ValueError(
                f"the batch has {len(layout.image_tokens)} <image> tokens and its images have {found} features; "
                "prepare the inputs with this model's own processor"
            )
        return input_ids == self.config.image_token_id

    def _per_layer_inputs(self, input_ids: Tensor | None) -> dict[str, Tensor]:
        """Per-layer embeddings of language models that look them up by token id in each layer (Gemma 3n, Gemma 4).

        Placeholders have none and are replaced by padding, as in the multimodal versions of these models.

        Raises:
            ValueError: such a language model is given embeddings without ids.
        """
        config = self.language_model.config
        if not getattr(config, "hidden_size_per_layer_input", None):
            return {}
        if input_ids is None:
            raise ValueError(
                f"the language model {config.model_type} looks up embeddings in each layer by token id; give input_ids "
                "in place of inputs_embeds"
            )
        placeholder = torch.isin(input_ids, _placeholders(self.config, input_ids.device))
        words = input_ids.masked_fill(placeholder, getattr(config, "pad_token_id", None) or 0)
        look_up: Callable[..., Tensor] = self.language_model.get_per_layer_inputs
        # Gemma 4's also takes the embeddings, but uses them only without ids.
        takes_embeddings = "inputs_embeds" in signature(look_up).parameters
        return {"per_layer_inputs": look_up(words, None) if takes_embeddings else look_up(words)}

    def _additive_mask(self, mask: Any, embeds: Tensor) -> Any:
        """The attention mask as the language model expects it: additive instead of boolean for eager attention.

        A purely recurrent language model (Mamba) takes a mask of the current tokens only, not of the cached ones.
        """
        dtype = embeds.dtype
        if isinstance(mask, Tensor) and mask.ndim == 2 and self._has_states_alone:
            return mask[:, -embeds.shape[1] :]
        eager = self.language_model.config._attn_implementation == "eager"
        if eager and isinstance(mask, Tensor) and mask.ndim == 4 and mask.dtype == torch.bool:
            return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        return mask

    @property
    def _has_states_alone(self) -> bool:
        kinds = getattr(self.language_model.config, "layer_types", None) or ()
        return bool(kinds) and all(kind == "linear_attention" for kind in kinds)

    def align_positions(self, input_ids: Tensor | None, inputs_embeds: Tensor) -> Tensor:
        """Positions of `<align>`, boolean `(batch, length)`; found by its embedding if only embeddings are given."""
        if input_ids is not None:
            return input_ids == self.config.align_token_index
        token = torch.tensor(self.config.align_token_index, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token)).all(dim=-1)


class AlignGPTForConditionalGeneration(AlignGPTGenerationMixin, AlignGPTPreTrainedModel, LlavaForConditionalGeneration):
    """AlignGPT with its language modeling head: the class to train, save, load and generate with."""

    config: AlignGPTConfig

    def __init__(self, config: AlignGPTConfig) -> None:
        # LLaVA's own constructor would build a LlavaModel only to discard it.
        LlavaPreTrainedModel.__init__(self, config)
        self.model = AlignGPTModel(config)
        text_config = config.get_text_config()
        self.lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=config.lm_head_bias)
        # Not every language model calls its table `embed_tokens`, as LLaVA's class attribute assumes.
        table = _name_of(self.model.get_input_embeddings(), self.model)
        self._tied_weights_keys = {"lm_head.weight": f"model.{table}.weight"}
        # A recurrent state cannot be rolled back, which rules out assisted decoding.
        self._is_stateful = self.model.language_model._is_stateful
        self.post_init()

    @_hf_signature
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        instruction_mask: Tensor | None = None,
        alignment_level: Tensor | None = None,
        alignment_weights: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        vision_features: Tensor | None = None,
        skip_logits: bool | None = None,
        layout: Layout | None = None,
        **kwargs: Any,
    ) -> AlignGPTOutput:
        """Compute next-token logits, and the loss if `labels` are given.

        Args:
            labels: `(batch, length)`, -100 at tokens that do not count. `<image>` and `<align>` never count. Unless
                `instruction_mask` is given, the text before the first counted token of a row is its instruction.
            logits_to_keep: number of last positions to compute `logits (batch, length, vocabulary)` for (0: all). They
                are minus infinity at `config.placeholder_ids`, which have probability zero.
            skip_logits: with labels, compute the loss without the logits, which are by far the largest tensor, and
                omit them from the output; when None, true in training only.
            num_items_in_batch: number of counted tokens in the whole batch if this is a micro-batch of it; the loss is
                the sum over the micro-batch divided by this number.
            others: see `AlignGPTModel.forward`.

        Example:

        ```python
        >>> from PIL import Image
        >>> from transformers import AutoModelForImageTextToText, AutoProcessor
        >>> import aligngpt

        >>> model = AutoModelForImageTextToText.from_pretrained("runs/quickstart/model")
        >>> processor = AutoProcessor.from_pretrained("runs/quickstart/model")
        >>> question = [{"type": "image", "image": Image.open("shape.png")}, {"type": "text", "text": "what is it?"}]
        >>> inputs = processor.apply_chat_template(
        ...     [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=True, return_dict=True,
        ...     return_tensors="pt",
        ... )
        >>> print(processor.decode(model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]))
        ```
        """
        if labels is not None:
            if layout is None:
                labels = self._without_placeholders(labels, num_items_in_batch)
            # A cache is useless in training, and would make a row of several samples attend as a single one.
            kwargs.setdefault("use_cache", False)
            if instruction_mask is None and self.config.text_pooling == "instruction":
                instruction_mask = (labels != IGNORE_INDEX).cumsum(dim=-1) == 0
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            instruction_mask=instruction_mask,
            alignment_level=alignment_level,
            alignment_weights=alignment_weights,
            mm_encoder_outputs=mm_encoder_outputs,
            vision_features=vision_features,
            layout=layout,
            return_dict=True,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if hidden.dtype == torch.float32:  # Some bodies (Mamba) return single precision regardless of their dtype.
            hidden = hidden.to(self.get_input_embeddings().weight.dtype)

        loss = losses = predictions = logits = None
        if skip_logits is None:
            skip_logits = self.training and torch.is_grad_enabled()
        if labels is None or not skip_logits:
            logits = self._logits(slice_logits_to_keep(hidden, logits_to_keep))
        if labels is not None:
            labels = labels.to(hidden.device)  # That of the last layer, if they are spread over several.
            # Two dimensions, not three: a frozen head applied to a sliced batch would be copied for every sample.
            if layout is None:
                counted = labels[:, 1:] != IGNORE_INDEX
                hidden, expected = hidden[:, :-1][counted], labels[:, 1:][counted]
            else:
                hidden = hidden.flatten(0, 1).index_select(0, layout.counted)
                expected = labels.flatten().index_select(0, layout.counted + 1)
            # Elsewhere, the head is called: accelerate then brings weights and hidden states together.
            if self._fuses_loss() and self.lm_head.weight.device == hidden.device:
                loss, losses = linear_cross_entropy(
                    hidden, self.lm_head.weight, self.lm_head.bias, expected, _placeholders(self.config, hidden.device)
                )
            elif torch.is_grad_enabled():
                losses = nn.functional.cross_entropy(self._logits(hidden).float(), expected, reduction="none")
                loss, losses = losses.sum(), losses.detach()
            else:
                losses, predictions = self._losses_in_parts(hidden, expected)
                loss = losses.sum()
            loss = loss / (max(1, len(expected)) if num_items_in_batch is None else num_items_in_batch)
        return AlignGPTOutput(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_outputs=outputs.image_outputs,
            alignment_weights=outputs.alignment_weights,
            token_losses=losses,
            token_predictions=predictions,
        )

    def _without_placeholders(self, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """The labels with placeholders ignored: `<align>` and `<image>` have probability zero, so an infinite loss.

        Raises:
            ValueError: there are such labels and `num_items_in_batch` is given, which then counts them too.
        """
        placeholder = torch.isin(labels, _placeholders(self.config, labels.device))
        if num_items_in_batch is not None and not torch.compiler.is_compiling() and placeholder.any():
            raise ValueError(
                "the labels contain <image> or <align>, which are never an answer, and num_items_in_batch counts them; "
                f"set labels to {IGNORE_INDEX} at the token ids {', '.join(map(str, self.config.placeholder_ids))}"
            )
        return labels.masked_fill(placeholder, IGNORE_INDEX)

    def _losses_in_parts(self, hidden: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the most likely token per position, `(tokens,)` each, for `hidden (tokens, hidden)`.

        There are no gradients, and logits exist for one chunk of positions at a time.
        """
        losses, predictions = [], []
        for part, right in zip(hidden.split(ROWS_AT_ONCE), expected.split(ROWS_AT_ONCE), strict=True):
            logits = self._logits(part).float()
            losses.append(nn.functional.cross_entropy(logits, right, reduction="none"))
            predictions.append(logits.argmax(dim=-1))
        return torch.cat(losses), torch.cat(predictions)

    def _fuses_loss(self) -> bool:
        """Whether the loss can be computed without logits: in training, with an unsharded, plain linear head."""
        head = self.lm_head
        plain = type(head) is nn.Linear and type(head.weight.data) is Tensor and not hasattr(head.weight, "ds_id")
        return self.training and torch.is_grad_enabled() and plain and not self._scales_logits()

    def _scales_logits(self) -> bool:
        text_config = self.config.get_text_config()
        return any(getattr(text_config, name, None) for name in LOGIT_SETTINGS)

    def _logits(self, hidden: Tensor) -> Tensor:
        """The head's logits, scaled or capped as in the language model (Gemma 2 caps, Cohere and Granite scale them).

        `<align>` and `<image>` are never an answer: minus infinity removes them from every distribution, so that an
        assembled model assigns text exactly the probabilities of its language model.
        """
        logits = self.lm_head(hidden)
        text_config = self.config.get_text_config()
        for name in ("logit_scale", "lm_head_multiplier"):
            if scale := getattr(text_config, name, None):
                logits = logits * scale
        if scaling := getattr(text_config, "logits_scaling", None):
            logits = logits / scaling
        for name in SOFT_CAPS:
            if cap := getattr(text_config, name, None):
                logits = torch.tanh(logits / cap) * cap
        return logits.index_fill(-1, _placeholders(self.config, logits.device), -torch.inf)


def _placeholders(config: AlignGPTConfig, device: torch.device) -> Tensor:
    """The ids of the placeholders, `(placeholders,)`."""
    # Filled on the device: a copy from the CPU would wait for it.
    filled = [torch.full((1,), index, device=device) for index in config.placeholder_ids]
    return torch.cat(filled or [torch.zeros(0, dtype=torch.long, device=device)])


def _name_of(wanted: nn.Module, root: nn.Module) -> str:
    return next(name for name, module in root.named_modules() if module is wanted)
