"""Training examples: the token ids of a conversation, which of them count, and what the model reads beside them."""

from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from torch import Tensor

from aligngpt.data.rejects import Rejected
from aligngpt.errors import AlignGPTError
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.model.processing import AlignGPTProcessor


class ExampleError(AlignGPTError):
    """A sample cannot be made into a training example; `reason` is a short name of why."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Example:
    """One sample as the model reads it.

    Attributes:
        input_ids: token ids, `<image>` once per image token.
        labels: the ids that count and -100 elsewhere, as long as `input_ids`.
        pixel_values: `(images, channels, height, width)`, or None without images.
        level: the alignment level 1…N, where the sample has one.
        id: the sample's.
        features: what the vision tower made of the images, `(images, P, scales · tower hidden)`, where that is known;
            there are no `pixel_values` then.
        feature_keys: of each image whose features are to be computed and kept.
        rejected: the samples that were found to be of no use when the example's row was read.
    """

    input_ids: list[int]
    labels: list[int]
    pixel_values: Tensor | None
    level: int | None
    id: str = ""
    features: Tensor | None = None
    feature_keys: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()

    @property
    def has_images(self) -> bool:
        """Whether there is an image, as pixels or as features."""
        return self.pixel_values is not None or self.features is not None


Row = tuple[Example, ...]
"""What one line of a batch is made of: one example, or several with the same images."""


def tokenize(
    messages: list[dict[str, Any]],
    processor: AlignGPTProcessor,
    *,
    chat_template: str | None = None,
    max_length: int = 2048,
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a conversation; only the assistant's turns and the marks that end them count.

    The conversation is rendered and tokenized as a whole, exactly as for generation; what counts is found by where
    each turn begins and ends in the text.

    Args:
        messages: in transformers' chat format, with a placeholder part for each image.
        processor: whose tokenizer, template and `<align>` are used.
        chat_template: Jinja source; the processor's own when None.
        max_length: a longer conversation loses its last turns, whole ones; if the first answer alone is still too
            long, its end is cut off.

    Returns:
        `input_ids` and `labels` of equal length; labels are -100 where a token does not count.

    Raises:
        ExampleError: images and first question leave no room for an answer, nothing counts, or the template refuses
            the conversation (some have no system turn) or rewrites earlier turns.
    """
    messages = processor.neutral(messages)
    input_ids, labels = _encode(messages, processor, chat_template)
    while len(input_ids) > max_length and sum(message["role"] == "assistant" for message in messages) > 1:
        last = max(place for place, message in enumerate(messages[:-1]) if message["role"] == "assistant")
        messages = messages[: last + 1]
        input_ids, labels = _encode(messages, processor, chat_template)
    counted = [place for place, label in enumerate(labels) if label != IGNORE_INDEX]
    if not counted:
        raise ExampleError("no_answer", "the conversation has no token of an answer to learn from")
    if counted[0] >= max_length:
        raise ExampleError(
            "too_long",
            f"images and question take {counted[0]} tokens, which leaves no room for an answer within {max_length}; "
            "raise max_length",
        )
    return input_ids[:max_length], labels[:max_length]


def _encode(
    messages: list[dict[str, Any]], processor: AlignGPTProcessor, chat_template: str | None
) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation in full."""
    tokenizer = processor.tokenizer

    def render(turns: list[dict[str, Any]], opening: bool) -> str:
        try:
            text = processor.apply_chat_template(turns, chat_template, add_generation_prompt=opening, tokenize=False)
        except TemplateError as error:
            raise ExampleError(
                "template",
                f"the chat template refuses the conversation: {error}; change the record, or take another template",
            ) from error
        return processor.expand(text)

    whole = render(messages, False)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = render(messages[:index], True), render(messages[: index + 1], False)
        if not (whole.startswith(after) and after.startswith(before)):
            raise ExampleError(
                "template", "the chat template rewrites earlier turns when later ones follow; give it another template"
            )
        spans.append((len(before), len(before) + len(_counted(after[len(before) :], tokenizer))))

    input_ids, offsets = processor.encode(whole)
    labels = [IGNORE_INDEX] * len(input_ids)
    for position, (start, end) in enumerate(offsets):
        if start < end and any(first <= start and end <= last for first, last in spans):
            labels[position] = input_ids[position]
    return input_ids, labels


def _counted(answer: str, tokenizer: Any) -> str:
    """A turn without the line break that some templates write after its end mark: generation has stopped by then."""
    stripped = answer.rstrip()
    ended = any(stripped.endswith(mark) for mark in tokenizer.all_special_tokens)
    return stripped if ended else answer
