"""Opens an image and resizes and preprocesses it as a model's image processor does."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from aligngpt.data.images.opening import ImageError
from aligngpt.data.images.reference import Picture
from aligngpt.scoring.byte_processor import ByteProcessor, byte_processor
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.patches import pixels_of
from aligngpt.scoring.picture_marks import ABSENT, has_file, mark_of


class Prepared(NamedTuple):
    """An image ready for the model.

    Workers return it pickled, which costs little compared to opening and resizing it.

    Attributes:
        hash: BLAKE2b of the file's content, 128 bits in hexadecimal.
        width: width of the upright image, in pixels.
        height: height of the upright image, in pixels.
        pixels: input of `Preparation.pixel_values`, `(3, height, width)`: 8-bit pixels if the image processor can be
            replaced by a lookup table (see `ByteProcessor`), otherwise the image processor's output; bfloat16, which
            numpy lacks, is stored as int16.
        mark: see `aligngpt.scoring.picture_marks`; empty for an image that is not a separate file.
        more: the same as `pixels` for each of the other models, if several score the pairs.
    """

    hash: str
    width: int
    height: int
    pixels: NDArray[Any]
    mark: bytes = b""
    more: tuple[NDArray[Any], ...] = ()


class Refused(NamedTuple):
    """An unusable image; `reason` is one of `IMAGE_REASONS`, `mark` is as in `Prepared`."""

    reason: str
    detail: str
    mark: bytes = b""


@dataclass(frozen=True)
class Preparation:
    """Opens images and preprocesses them as a scorer does; small enough to be sent to another process.

    Attributes:
        image_processor: the model's own.
        dtype: the model's compute precision, so that workers send no more bytes than it reads.
        in_bytes: the 8-bit version of the image processor, if there is one.
        others: the preparations for the other models, if several score the pairs.
    """

    image_processor: Any
    dtype: torch.dtype
    in_bytes: ByteProcessor | None = None
    others: "tuple[Preparation, ...]" = ()

    @classmethod
    def of(cls, scorer: PairScorer, others: Sequence[PairScorer] = ()) -> "Preparation":
        """The preparation for a scorer, and for others that score the same images."""
        found = byte_processor(scorer.image_processor)
        return cls(scorer.image_processor, scorer.dtype, found, tuple(map(cls.of, others)))

    def __call__(self, pictures: Sequence[Picture]) -> list[Prepared | Refused]:
        """The result for each image, in order."""
        return [self._prepare(picture) for picture in pictures]

    def _prepare(self, picture: Picture) -> Prepared | Refused:
        mark = ABSENT if has_file(picture) else b""
        try:
            content = picture.read()
            mark = mark and mark_of(content)
            image = replace(picture, path=None, offset=0, length=None, content=content).open()
            array, *more = (one.pixels_for(image) for one in (self, *self.others))
        except ImageError as error:
            return Refused(error.reason, str(error), mark)
        except (ValueError, MemoryError) as error:
            return Refused("unreadable", f"{picture.name} cannot be prepared for the model: {error}", mark)
        return Prepared(hashlib.blake2b(content, digest_size=16).hexdigest(), *image.size, array, mark, tuple(more))

    def pixels_for(self, image: Image.Image) -> NDArray[Any]:
        """The pixels of an RGB image for this model, see `Prepared.pixels`."""
        if self.in_bytes is not None:
            return self.in_bytes(image)
        pixels = pixels_of(self.image_processor, [image])[0].to(self.dtype).contiguous()
        return (pixels.view(torch.int16) if self.dtype == torch.bfloat16 else pixels).numpy()

    def pixel_values(self, pictures: Sequence[NDArray[Any]]) -> Tensor:
        """The image processor's output for prepared images: `(images, 3, height, width)`."""
        if self.in_bytes is not None:
            return torch.from_numpy(self.in_bytes.look_up(pictures))
        tensor = torch.from_numpy(np.stack(pictures))
        return tensor.view(self.dtype) if self.dtype == torch.bfloat16 else tensor

    def stacked(self, pictures: Sequence[NDArray[Any]], *, pinned: bool = False) -> Tensor:
        """Prepared images as they are, in one tensor; in pinned memory, a GPU copies it without the CPU."""
        first = torch.from_numpy(pictures[0])
        stacked = torch.empty((len(pictures), *first.shape), dtype=first.dtype, pin_memory=pinned)
        np.stack(pictures, out=stacked.numpy())
        return stacked

    def values_of(self, stacked: Tensor) -> Tensor:
        """The `pixel_values` in the model's precision, for `stacked` images on the model's device."""
        if self.in_bytes is not None:
            return self.in_bytes.look_up_on_device(stacked, self.dtype)
        return stacked.view(self.dtype) if self.dtype == torch.bfloat16 else stacked.to(self.dtype)
