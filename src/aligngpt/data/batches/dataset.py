"""A data set of training rows, built lazily from a list of samples."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL
import torch
import xxhash
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from aligngpt import upright_rgb
from aligngpt.data.batches.examples import Example, ExampleError, Row, images_in, response_of, tokenize
from aligngpt.data.batches.rows import rows_of
from aligngpt.data.images import opening
from aligngpt.data.images.opening import ImageError
from aligngpt.data.images.reference import Picture
from aligngpt.data.records.sample import Sample
from aligngpt.data.rejects import Rejected
from aligngpt.data.samples.columns import columns_of
from aligngpt.data.samples.preparing import code_digest
from aligngpt.data.samples.sequence import picture_of
from aligngpt.data.sources.finding import content_of
from aligngpt.errors import AlignGPTError
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.model.vision_towers import Framing, framing

DECODING = Path(opening.__file__).parent
"""Folder of the modules that decode images."""

CONVERSION = Path(upright_rgb.__file__)
"""The module that makes decoded images upright and RGB."""

NEIGHBOURS = 64
"""Number of rows around one that cannot be used from which its replacement is drawn first; doubled at each attempt."""

ATTEMPTS = 64
"""Number of replacements that are drawn."""

SEARCHED = 4096
"""Number of rows of a data set up to which all of them are then tried. In a larger one the images are no longer
readable at all, and trying each would take days before anyone is told."""


class KnownFeatures(Protocol):
    """A cache of vision tower features. Data loader workers use it, so it must be picklable."""

    def key(self, picture: bytes) -> str:
        """The cache key of the features of an encoded image."""
        ...

    def read(self, key: str) -> Tensor | None:
        """The features, `(P, scales · tower hidden)`; None if they are not cached."""
        ...


class Images(NamedTuple):
    """The images of a row; see `Example` for the fields."""

    pixel_values: Tensor | None = None
    features: Tensor | None = None
    feature_keys: tuple[str, ...] = ()

    def first(self, count: int) -> "Images":
        """The first images only."""
        pixels, features = (
            None if values is None or not count else values[:count] for values in (self.pixel_values, self.features)
        )
        return Images(pixels, features, self.feature_keys[:count])


class ConversationDataset(Dataset[Row]):
    """The training examples of a list of samples, row by row.

    Only the assistant's turns and their end marks count in the loss. A row whose samples are all unusable is replaced
    by a usable one near it, so that batches keep their size. Rejected samples are attached to the row
    (`Example.rejected`) every time it is read: several processes may read rows, and only the training process can
    count the rejects.

    Args:
        samples: the samples, as returned by `load_samples`.
        processor: processor of the model to be trained.
        image_root: folder that image paths are relative to; for samples of several sources (`Columns.sources`), one
            folder per source.
        chat_template: Jinja source; the processor's own when None. Pre-training uses the plain template.
        max_length: maximum number of tokens per example; see `tokenize` for the handling of longer ones.
        questions_per_prefix: maximum number of samples with the same images per row. See `Collator`.
        pad_images: pad images to a square (True), centre-crop them (False) or `stretch` them; the processor's setting
            when None.
        with_levels: set the level of each example to that of its sample. A given level replaces the gate, so only
            pre-training sets this.

    Attributes:
        known_features: cache of vision tower features; cached images are not decoded.
    """

    known_features: KnownFeatures | None = None

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: AlignGPTProcessor,
        image_root: Path | Sequence[Path],
        *,
        chat_template: str | None = None,
        max_length: int = 2048,
        questions_per_prefix: int = 1,
        pad_images: Framing | None = None,
        with_levels: bool = True,
    ) -> None:
        self.samples = samples
        self.rows = rows_of(samples, questions_per_prefix, by_level=with_levels)
        self.processor = processor
        self._roots = [image_root] if isinstance(image_root, Path) else list(image_root)
        self._sources = columns_of(samples).sources if len(self._roots) > 1 else None
        self.with_levels = with_levels
        self.chat_template = chat_template
        self.max_length = max_length
        self._how = {}
        if pad_images is not None:
            self._how = framing(pad_images, dict(processor.image_processor.crop_size)["height"])
        self._rejected: dict[int, Rejected] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        if index < 0:
            # `-1 - row` marks a row that only fills up a batch: no token of it counts in the loss.
            return tuple(replace(example, labels=[IGNORE_INDEX] * len(example.labels)) for example in self[-1 - index])
        rejected: list[Rejected] = []
        tried = 0
        for candidate in self._candidates(index):
            members = self.rows[candidate]
            row = self._row(members)
            rejected += self._rejected_of(members)
            tried += 1
            if row:
                return (replace(row[0], rejected=tuple(dict.fromkeys(rejected))), *row[1:])
        first = min(rejected)
        if len(self.rows) <= SEARCHED:
            raise AlignGPTError(
                f"none of the {len(self.samples)} samples can be used; the first is record {first.record} "
                f"(id {first.id}): {first.detail}"
            )
        last = rejected[-1]
        raise AlignGPTError(
            f"none of {tried} rows can be used that were drawn in place of one that cannot; the last has record "
            f"{last.record} (id {last.id}): {last.detail}. Check that the images can still be read, then run the same "
            "command again"
        )

    def _candidates(self, index: int) -> Iterator[int]:
        """A row, and those that may replace it if it cannot be used.

        Unusable rows often lie together (a folder, an archive), so the next usable one would replace all of them. These
        are drawn near the row, from ever wider surroundings: mostly of the same source and file. The draw depends on
        the row alone, so a resumed epoch has the same rows.
        """
        yield index
        count = len(self.rows)
        draws = random.Random(index)
        width = NEIGHBOURS
        for _ in range(ATTEMPTS):
            if width >= count:
                yield draws.randrange(count)
            else:
                start = min(max(index - width // 2, 0), count - width)
                yield start + draws.randrange(width)
            width *= 2
        if count <= SEARCHED:
            yield from range(count)

    def row(self, index: int) -> tuple[Row, tuple[Rejected, ...]]:
        """The usable examples of a row (possibly none) and its rejected samples."""
        members = self.rows[index]
        return self._row(members), tuple(self._rejected_of(members))

    def _rejected_of(self, members: Sequence[int]) -> list[Rejected]:
        return [self._rejected[member] for member in members if member in self._rejected]

    def _row(self, members: Sequence[int]) -> Row:
        """The usable examples of a row; empty if its images cannot be read."""
        samples = [(member, self.samples[member]) for member in members if member not in self._rejected]
        if not samples:
            return ()
        examples: list[Example] = []
        try:
            images = self.images_of(samples[0][0], len(samples[0][1].images))
        except ImageError as error:
            for member, sample in samples:
                self._reject(member, sample, error.reason, error)
            return ()
        for member, sample in samples:
            try:
                messages = sample.messages()
                input_ids, labels = tokenize(
                    messages, self.processor, chat_template=self.chat_template, max_length=self.max_length
                )
                response = response_of(
                    messages, self.processor, chat_template=self.chat_template, max_length=self.max_length
                )
            except ExampleError as error:
                self._reject(member, sample, error.reason, error)
            else:
                level = sample.level if self.with_levels else None
                # A conversation that is too long loses its last turns with their images.
                shown = images.first(images_in(input_ids, self.processor)) if sample.interleaved else images
                of_images = (shown.features, shown.feature_keys)
                example = Example(input_ids, labels, shown.pixel_values, level, sample.id, *of_images)
                examples.append(example if response is None else replace(example, response=response))
        return tuple(examples)

    def root_of(self, member: int) -> Path:
        """The image root of the sample at index `member`."""
        return self._roots[0 if self._sources is None else self._sources[member]]

    def picture(self, member: int, number: int) -> Picture:
        """Image `number` of the sample at index `member`, not decoded yet.

        Raises:
            ImageError: its path points outside the image root, or its archive can no longer be read.
        """
        return picture_of(self.samples, member, number, self.root_of(member))

    def images_of(self, member: int, count: int) -> Images:
        """The features of the images of the sample at index `member` if all are cached, else the pixels of all.

        Raises:
            ImageError: an image cannot be read.
        """
        if not count:
            return Images()
        pictures = [self.picture(member, number) for number in range(count)]
        keys: tuple[str, ...] = ()
        if self.known_features is not None:
            # Each is read once, so that a file that changes cannot have the key of one image and the pixels of another.
            contents = [picture.read() for picture in pictures]
            pictures = [_with(content, picture) for content, picture in zip(contents, pictures, strict=True)]
            keys = tuple(map(self.known_features.key, contents))
            found = [features for key in keys if (features := self.known_features.read(key)) is not None]
            if found and len(found) == len(pictures):
                return Images(features=torch.stack(found))
        return Images(self.preprocess([picture.open() for picture in pictures]), feature_keys=keys)

    @property
    def picture_settings(self) -> dict[str, Any]:
        """All that affects how images are decoded and preprocessed, as plain data."""
        settings: dict[str, Any] = json.loads(self.processor.image_processor.to_json_string())
        return settings | self._how | {"decoding": [PIL.__version__, code_digest(DECODING), content_of(CONVERSION)]}

    def preprocess(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Preprocess images for the vision tower; returns `(images, channels, height, width)`."""
        pixels: Tensor = self.processor.image_processor(list(pictures), return_tensors="pt", **self._how)[
            "pixel_values"
        ]
        return pixels

    def _reject(self, member: int, sample: Sample, reason: str, error: AlignGPTError) -> None:
        self._rejected[member] = Rejected(member, sample.record, sample.id, reason, str(error))


def _with(content: bytes, picture: Picture) -> Picture:
    """The image as its content; one that is a whole file keeps the file's path as its name."""
    is_file = picture.path is not None and picture.length is None
    return Picture(str(picture.path) if is_file else picture.name, content=content)


def rows_digest(dataset: ConversationDataset) -> str:
    """A digest of what the order of training depends on: the samples of each row, and their lengths."""
    columns = columns_of(dataset.samples)
    digest = xxhash.xxh3_128()
    for values in (dataset.rows.members, dataset.rows.starts, columns.characters, columns.images, columns.sources):
        digest.update(np.ascontiguousarray(values, dtype=np.int64).tobytes())
    return digest.hexdigest()


def row_lengths(dataset: ConversationDataset) -> list[int]:
    """A cheap estimate of each row's length in characters, an image token counted as four; for grouping batches."""
    columns = columns_of(dataset.samples)
    images = 4 * dataset.processor.image_seq_length * columns.images
    lengths: list[int] = (dataset.rows.sums(columns.characters) + images[dataset.rows.first]).tolist()
    return lengths
