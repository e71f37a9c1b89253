"""From samples to training examples: token ids, which of them count, pixels and level."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from PIL import Image
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
        id: the sample's.
    """

    input_ids: list[int]
    labels: list[int]
    pixel_values: Tensor | None
    level: int | None
    id: str = ""


Row = tuple[Example, ...]
"""What one line of a batch is made of: one example, or several with the same images."""


class ConversationDataset(Dataset[Row]):
    """The training examples of a list of samples, row by row.

    Only what the assistant says counts in the loss, with the mark that ends it. A sample that cannot be used is written
    to `rejects`; a row that loses all its samples so is replaced by the next good one, so that batches keep their size.

    Args:
        samples: what `load_samples` gave.
        processor: of the model to be trained.
        image_root: folder the samples' image paths start from.
        rejects: where samples that cannot be used go.
        chat_template: Jinja source; the processor's own when None. Pre-training uses the plain one.
        max_length: tokens per example; see `tokenize` for what is done with longer ones.
        questions_per_prefix: how many samples with the same images make one row, at most. See `Collator`.
        pad_images: pad pictures to a square, or cut out the middle; as the processor does when None.
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
        questions_per_prefix: int = 1,
        pad_images: bool | None = None,
    ) -> None:
        self.samples = samples
        self.rows = rows_of(samples, questions_per_prefix)
        self.processor = processor
        self.image_root = image_root
        self.rejects = rejects
        self._records = len(samples) + rejects.count
        self.chat_template = chat_template
        self.max_length = max_length
        self._how = {} if pad_images is None else {"do_pad": pad_images}
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        for offset in range(len(self.rows)):
            if row := self._row(self.rows[(index + offset) % len(self.rows)]):
                return row
        raise AlignGPTError("not one sample of the training data can be used; the rejects file says why")

    def _row(self, members: Sequence[int]) -> Row:
        """The examples of a row that can be made; none where its images cannot be read."""
        samples = [(member, self.samples[member]) for member in members if member not in self._bad]
        if not samples:
            return ()
        examples: list[Example] = []
        try:
            pixels = self._pixels(samples[0][1].images)
        except ImageError as error:
            for member, sample in samples:
                self._reject(member, sample, error.reason, error)
            return ()
        for member, sample in samples:
            try:
                input_ids, labels = tokenize(
                    sample.messages(), self.processor, chat_template=self.chat_template, max_length=self.max_length
                )
            except ExampleError as error:
                self._reject(member, sample, error.reason, error)
            else:
                examples.append(Example(input_ids, labels, pixels, sample.level, sample.id))
        return tuple(examples)

    def _pixels(self, images: Sequence[str]) -> Tensor | None:
        if not images:
            return None
        pictures = [open_image(resolve_image(name, self.image_root)) for name in images]
        return self.preprocess(pictures)

    def preprocess(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures as the vision tower takes them, `(images, channels, height, width)`."""
        pixels: Tensor = self.processor.image_processor(list(pictures), return_tensors="pt", **self._how)[
            "pixel_values"
        ]
        return pixels

    def _reject(self, member: int, sample: Sample, reason: str, error: AlignGPTError) -> None:
        self._bad.add(member)
        self.rejects.add(sample.record, sample.id, reason, str(error))
        self.rejects.check(self._records)


def rows_of(samples: Sequence[Sample], questions_per_prefix: int) -> list[tuple[int, ...]]:
    """Which samples share a row, by their places in `samples`.

    Samples with the same images and level are cut into as few rows of at most `questions_per_prefix` as will do, of
    about equal size. Samples without an image get a row each: they have no prefix to share.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, sample in enumerate(samples):
        alone = questions_per_prefix == 1 or not sample.images
        groups.setdefault((place,) if alone else (sample.images, sample.level), []).append(place)
    rows = []
    for members in groups.values():
        count = -(-len(members) // questions_per_prefix)
        # Every count-th one, so that neighbours in the file, which are often alike, are told apart.
        rows += [tuple(members[start::count]) for start in range(count)]
    return rows


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
    counted = [place for place, label in enumerate(labels) if label != IGNORED]
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

    adds_special = not (tokenizer.bos_token and whole.startswith(tokenizer.bos_token))
    encoded = tokenizer(whole, add_special_tokens=adds_special, return_offsets_mapping=True)
    input_ids = list(encoded["input_ids"])
    labels = [IGNORED] * len(input_ids)
    for position, (start, end) in enumerate(encoded["offset_mapping"]):
        if start < end and any(first <= start and end <= last for first, last in spans):
            labels[position] = input_ids[position]
    return input_ids, labels


def _counted(answer: str, tokenizer: Any) -> str:
    """A turn without the line break that some templates write after its end mark: generation has stopped by then."""
    stripped = answer.rstrip()
    ended = any(stripped.endswith(mark) for mark in tokenizer.all_special_tokens)
    return stripped if ended else answer


def row_lengths(dataset: ConversationDataset) -> list[int]:
    """A cheap estimate of each row's length in characters, image tokens counted fourfold; for grouping batches."""
    per_image = 4 * dataset.processor.image_seq_length
    lengths = []
    for row in dataset.rows:
        samples = [dataset.samples[member] for member in row]
        text = sum(len(turn.text) for sample in samples for turn in sample.turns)
        lengths.append(text + per_image * len(samples[0].images))
    return lengths
