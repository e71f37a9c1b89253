"""A conversation as the model reads it: token ids, pixels, and the part of the text that the gate reads."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor

from aligngpt.data.batches.examples import ExampleError, tokenize
from aligngpt.inference.requests import EngineError, Request
from aligngpt.model.modeling import IGNORE_INDEX, AlignGPTForConditionalGeneration
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.model.templates import ChatTemplateError
from aligngpt.upright_rgb import upright_rgb


@dataclass(frozen=True, eq=False)
class Prompt:
    """A rendered and tokenized conversation.

    Attributes:
        ids: token ids, with `<align>` and each `<image>` as often as an image has tokens.
        pixels: `(images, channels, height, width)`; None without images.
        gate_ids: the ids that the gate reads: the text before the first answer, and all image tokens.
        level: alignment level 1…N to force; None leaves it to the gate.
        image_end: number of ids up to the last image token; 0 without images.
    """

    ids: list[int]
    pixels: Tensor | None = field(repr=False)
    gate_ids: list[int]
    level: int | None
    image_end: int

    @cached_property
    def picture_hashes(self) -> tuple[str, ...]:
        """SHA-256 of the pixels of each image as the model gets them."""
        if self.pixels is None:
            return ()
        return tuple(hashlib.sha256(image.float().cpu().numpy().tobytes()).hexdigest() for image in self.pixels)

    @property
    def alignment_key(self) -> tuple[Any, ...]:
        """Equal for conversations that have the same alignment embedding."""
        if self.pixels is None:
            return ()
        return (self.picture_hashes, self.level, None if self.level is not None else tuple(self.gate_ids))


class PromptWriter:
    """Turns requests into prompts.

    Args:
        model: decides which levels exist and how long a conversation may be.
        processor: its processor.
        pin_gate: let the gate read the text before the first answer only, also in models whose gate was trained to read
            all of the text (`text_pooling: all`).
    """

    def __init__(
        self, model: AlignGPTForConditionalGeneration, processor: AlignGPTProcessor, *, pin_gate: bool = False
    ) -> None:
        self.model, self.processor = model, processor
        self.pinned = pin_gate or model.config.text_pooling == "instruction" or model.model.alignment is None

    @property
    def context(self) -> int | None:
        """Tokens of conversation and answer together, at most; None if the language model has no limit."""
        return getattr(self.model.config.text_config, "max_position_embeddings", None)

    def write(self, request: Request, max_new_tokens: int) -> Prompt:
        """The prompt of a request.

        Raises:
            EngineError: the level does not exist, the conversation is too long for the context, its images do not
                match its placeholders, or the chat template refuses the conversation or leaves part of it out.
        """
        try:
            return self._written(request, max_new_tokens)
        except (TemplateError, ChatTemplateError) as error:
            raise EngineError(f"the model's chat template cannot write these messages: {error}") from error

    def _written(self, request: Request, max_new_tokens: int) -> Prompt:
        self._check_places(request)
        messages = self.processor.neutral(request.messages)
        self._check_level(request.level)
        rendered = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        # Templates of models that think leave the thoughts of earlier answers out, as they should.
        asked = [message for message in messages if message["role"] != "assistant"]
        if role := self.processor.left_out(asked, rendered):
            raise EngineError(
                f"the model's chat template leaves out text of the {role}, so the model would not read it; leave that "
                "message out, or put its text into another one"
            )
        ids, _ = self.processor.encode(self.processor.expand(rendered))
        self._check_length(len(ids), max_new_tokens)
        image = self.model.config.image_token_id
        # The images are read together with those of other requests, so their number must be right.
        if (found := ids.count(image)) != (expected := len(request.images) * self.processor.image_seq_length):
            raise EngineError(
                f"the chat template writes {found} image tokens instead of {expected}; train the model with another "
                "template (model.chat_template), or convert the foreign model again with --chat-template"
            )
        image_end = max((place + 1 for place, token in enumerate(ids) if token == image), default=0)
        return Prompt(
            ids=ids,
            pixels=self._pixels(request),
            gate_ids=self._gate_ids(ids, messages) if image_end else [],
            level=request.level,
            image_end=image_end,
        )

    def answer_ids(self, request: Request, answer: str) -> tuple[list[int], list[int]]:
        """The ids of a conversation, and of a given answer to it with the end of the turn, tokenized as in training.

        Raises:
            EngineError: the images do not match their placeholders, or no token of the answer would be trained on.
        """
        self._check_places(request)
        earlier = [message | {"loss": False} for message in request.messages]
        told = {"role": "assistant", "content": answer}
        try:
            ids, labels = tokenize([*earlier, told], self.processor, max_length=sys.maxsize)
        except ExampleError as error:
            raise EngineError(f"the answer {answer!r} cannot be rated: {error}") from error
        counted = [place for place, label in enumerate(labels) if label != IGNORE_INDEX]
        return ids[: counted[0]], ids[counted[0] : counted[-1] + 1]

    def _check_places(self, request: Request) -> None:
        places = sum(
            part["type"] == "image"
            for message in request.messages
            if not isinstance(message["content"], str)
            for part in message["content"]
        )
        if places != len(request.images):
            raise EngineError(f"the messages have placeholders for {places} images, {len(request.images)} were given")

    def _check_level(self, level: int | None) -> None:
        if level is None:
            return
        levels = self.model.config.num_alignment_levels
        if not 1 <= level <= levels:
            raise EngineError(f"alignment level {level} is not one of the model's, 1…{levels}")
        if self.model.model.alignment is None:
            raise EngineError("this model has no alignment module (alignment: none), so it has no levels")

    def _check_length(self, length: int, max_new_tokens: int) -> None:
        if self.context is not None and length + max_new_tokens > self.context:
            raise ContextLengthError(
                f"the conversation has {length} tokens and the answer may have {max_new_tokens}, but the "
                f"model's context is {self.context} tokens; shorten one of them"
            )

    def _pixels(self, request: Request) -> Tensor | None:
        if not request.images:
            return None
        images = [upright_rgb(image) for image in request.images]
        pixels = self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        return pixels.to(self.model.device, self.model.dtype)

    def _gate_ids(self, ids: Sequence[int], messages: list[dict[str, Any]]) -> list[int]:
        if not self.pinned:
            return list(ids)
        image = self.model.config.image_token_id
        if self.model.model.alignment is None:
            return [token for token in ids if token == image]
        (mask,) = self.processor.instruction_mask([messages], [[1] * len(ids)])
        return [token for token, read in zip(ids, mask, strict=True) if read or token == image]


class ContextLengthError(EngineError):
    """A conversation and its answer are longer than the model's context."""


def as_row(ids: Sequence[int], device: torch.device) -> Tensor:
    """Token ids as a batch of one, `(1, length)`."""
    return torch.tensor([ids], device=device)
