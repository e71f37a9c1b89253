"""Training examples: token ids and labels of a conversation, with its images and alignment level."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from torch import Tensor

from aligngpt.data.rejects import Rejected
from aligngpt.errors import AlignGPTError
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.model.processing import AlignGPTProcessor


class ExampleError(AlignGPTError):
    """A sample cannot be made into a training example; `reason` is the short name of the cause."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenized sample.

    Attributes:
        input_ids: token ids, with `<image>` repeated once per image token.
        labels: the token ids that count in the loss and -100 elsewhere, as long as `input_ids`.
        pixel_values: `(images, channels, height, width)`, or None without images.
        level: the alignment level 1…N, None if the sample has none.
        id: id of the sample.
        features: cached vision tower features of the images, `(images, P, scales · tower hidden)`; if present,
            `pixel_values` is None.
        feature_keys: cache keys of the images whose features are still to be computed.
        rejected: the samples that were rejected when the example's row was read.
        response: index of the first token of the first answer, if that answer does not count in the loss; None if its
            first token is the first that counts.
    """

    input_ids: list[int]
    labels: list[int]
    pixel_values: Tensor | None
    level: int | None
    id: str = ""
    features: Tensor | None = None
    feature_keys: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    response: int | None = None

    @property
    def has_images(self) -> bool:
        """Whether the example has images, as pixels or as features."""
        return self.pixel_values is not None or self.features is not None


Row = tuple[Example, ...]
"""One row of a batch: a single example, or several with the same images."""


def tokenize(
    messages: list[dict[str, Any]],
    processor: AlignGPTProcessor,
    *,
    chat_template: str | None = None,
    max_length: int = 2048,
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a conversation; only the assistant's turns and their end marks count in the loss.

    The conversation is rendered and tokenized as a whole, exactly as for generation; the counted tokens are found by
    the character offsets of each turn in the rendered text.

    Args:
        messages: conversation in transformers' chat format, with a placeholder part for each image; answers with
            `"loss": False` do not count.
        processor: provides the tokenizer, the chat template and `<align>`.
        chat_template: Jinja source; the processor's own when None.
        max_length: maximum number of tokens; whole turns are dropped from the end of a longer conversation, and if the
            first answer alone is still too long, it is truncated.

    Returns:
        `input_ids` and `labels` of equal length; labels are -100 for tokens that do not count.

    Raises:
        ExampleError: images and first question leave no room for an answer, no token counts, or the template rejects
            the conversation (some templates do not support a system turn), leaves out a text or rewrites earlier turns.
    """
    messages = processor.neutral(messages)
    input_ids, labels = _encode(messages, processor, chat_template)
    if all(label == IGNORE_INDEX for label in labels):
        raise ExampleError("no_answer", "the conversation has no answer tokens to train on")
    while len(input_ids) > max_length and sum(message["role"] == "assistant" for message in messages) > 1:
        last = max(place for place, message in enumerate(messages[:-1]) if message["role"] == "assistant")
        messages = messages[: last + 1]
        input_ids, labels = _encode(messages, processor, chat_template)
    counted = [place for place, label in enumerate(labels) if label != IGNORE_INDEX]
    if not counted:
        raise ExampleError(
            "too_long", f"no answer that counts in the loss is within {max_length} tokens; increase max_length"
        )
    if counted[0] >= max_length:
        raise ExampleError(
            "too_long",
            f"images and question take {counted[0]} tokens, which leaves no room for an answer within {max_length}; "
            "increase max_length",
        )
    return input_ids[:max_length], labels[:max_length]


def response_of(
    messages: list[dict[str, Any]], processor: AlignGPTProcessor, *, chat_template: str | None, max_length: int
) -> int | None:
    """`Example.response` of a conversation; arguments as for `tokenize`."""
    first = next(message for message in messages if message["role"] == "assistant")
    if first.get("loss", True):
        return None
    every = [{name: value for name, value in message.items() if name != "loss"} for message in messages]
    _, labels = tokenize(every, processor, chat_template=chat_template, max_length=max_length)
    return next(place for place, label in enumerate(labels) if label != IGNORE_INDEX)


def images_in(input_ids: Sequence[int], processor: AlignGPTProcessor) -> int:
    """The number of images in a tokenized conversation."""
    return input_ids.count(processor.image_token_id) // processor.image_seq_length


def _encode(
    messages: list[dict[str, Any]], processor: AlignGPTProcessor, chat_template: str | None
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a whole conversation, not truncated."""

    def render(turns: list[dict[str, Any]], opening: bool) -> str:
        try:
            return str(
                processor.apply_chat_template(turns, chat_template, add_generation_prompt=opening, tokenize=False)
            )
        except TemplateError as error:
            raise ExampleError(
                "template",
                f"the chat template rejects the conversation: {error}; change the record or use another template",
            ) from error

    def check_texts(turns: list[dict[str, Any]], written: str) -> None:
        if role := processor.left_out(turns, written, chat_template):
            raise ExampleError(
                "template",
                f"the chat template leaves out text of the {role}; change the record or use another template",
            )

    rendered = render(messages, False)
    whole = processor.expand(rendered)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or not message.get("loss", True):
            continue
        # Images may come later in the conversation.
        before = processor.expand(render(messages[:index], True), rendered)
        after = processor.expand(render(messages[: index + 1], False), rendered)
        if not (whole.startswith(after) and after.startswith(before)):
            raise ExampleError(
                "template", "the chat template rewrites earlier turns when later ones follow; use another template"
            )
        answer = after[len(before) :]
        check_texts([message], answer)
        spans.append((len(before), len(before) + len(_counted(answer, message))))
    check_texts(messages, rendered)

    input_ids, offsets = processor.encode(whole)
    labels = [IGNORE_INDEX] * len(input_ids)
    for position, (start, end) in enumerate(offsets):
        if start < end and any(first <= start and end <= last for first, last in spans):
            labels[position] = input_ids[position]
    return input_ids, labels


def _counted(answer: str, message: dict[str, Any]) -> str:
    """A rendered turn without the line break that some templates add after its end mark: generation stops at the mark.

    Without a mark after the message's own text, the line break is all that ends the turn.
    """
    content = message["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    stripped = answer.rstrip()
    return answer if stripped.endswith(text.rstrip()) else stripped
