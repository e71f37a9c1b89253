"""From samples to training examples: token ids, which of them count, pixels and level."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from aligngpt.data.images import ImageError, open_image, resolve_image
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples import Sample
from aligngpt.errors import AlignGPTError
from aligngpt.model.modeling import IGNORED
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
    """

    input_ids: list[int]
    labels: list[int]
    pixel_values: Tensor | None
    level: int | None


class ConversationDataset(Dataset[Example]):
    """The training examples of a list of samples.

    Only what the assistant says counts in the loss, with the mark that ends it. A sample whose image cannot be read
    is written to `rejects`, and the next good one takes its place, so that batches keep their size.

    Args:
        samples: what `load_samples` gave.
        processor: of the model to be trained.
        image_root: folder the samples' image paths start from.
        rejects: where samples that cannot be used go.
        chat_template: Jinja source; the processor's own when None. Pre-training uses the plain one.
        max_length: tokens per example; longer ones are cut at the end.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: AlignGPTProcessor,
        image_root: Path,
        rejects: Rejects,
        *,
        chat_template: str | None = None,
        max_length: int = 2048,
    ) -> None:
        self.samples = samples
        self.processor = processor
        self.image_root = image_root
        self.rejects = rejects
        self.chat_template = chat_template
        self.max_length = max_length
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Example:
        for offset in range(len(self.samples)):
            candidate = (index + offset) % len(self.samples)
            if candidate in self._bad:
                continue
            sample = self.samples[candidate]
            try:
                return self._example(sample)
            except (ImageError, ExampleError) as error:
                self._bad.add(candidate)
                self.rejects.add(sample.record, sample.id, error.reason, str(error))
                self.rejects.check(len(self.samples))
        raise AlignGPTError("not one sample of the training data can be used; the rejects file says why")

    def _example(self, sample: Sample) -> Example:
        input_ids, labels = tokenize(
            sample.messages(), self.processor, chat_template=self.chat_template, max_length=self.max_length
        )
        pixels = None
        if sample.images:
            pictures = [open_image(resolve_image(name, self.image_root)) for name in sample.images]
            pixels = self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        return Example(input_ids, labels, pixels, sample.level)


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
        max_length: longer conversations are cut at the end.

    Returns:
        `input_ids` and `labels` of equal length; labels are -100 where a token does not count.

    Raises:
        ExampleError: nothing that counts is left, an image would be cut, or the template rewrites earlier turns.
    """
    tokenizer = processor.tokenizer
    messages = processor.neutral(messages)

    def render(turns: list[dict[str, Any]], opening: bool) -> str:
        text = processor.apply_chat_template(turns, chat_template, add_generation_prompt=opening, tokenize=False)
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

    adds_special = not (tokenizer.bos_token and whole.startswith(tokenizer.bos_token))
    encoded = tokenizer(whole, add_special_tokens=adds_special, return_offsets_mapping=True)
    input_ids = list(encoded["input_ids"])
    labels = [IGNORED] * len(input_ids)
    for position, (start, end) in enumerate(encoded["offset_mapping"]):
        if start < end and any(first <= start and end <= last for first, last in spans):
            labels[position] = input_ids[position]
    if len(input_ids) > max_length:
        image_token = processor.image_token_id
        if image_token in input_ids[max_length:]:
            raise ExampleError("too_long", f"{len(input_ids)} tokens; cut at {max_length} it would lose an image")
        input_ids, labels = input_ids[:max_length], labels[:max_length]
    if all(label == IGNORED for label in labels):
        raise ExampleError("no_answer", f"no token of an answer is left within {max_length} tokens")
    return input_ids, labels


def _counted(answer: str, tokenizer: Any) -> str:
    """A turn without the line break that some templates write after its end mark: generation has stopped by then."""
    stripped = answer.rstrip()
    ended = any(stripped.endswith(mark) for mark in tokenizer.all_special_tokens)
    return stripped if ended else answer


def example_lengths(dataset: ConversationDataset) -> list[int]:
    """A cheap estimate of each example's length in characters, image tokens counted fourfold; for grouping batches."""
    per_image = 4 * dataset.processor.image_seq_length
    return [sum(len(turn.text) for turn in sample.turns) + per_image * len(sample.images) for sample in dataset.samples]
