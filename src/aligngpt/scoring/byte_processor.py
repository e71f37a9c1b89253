"""An image processor's work on 8-bit pixels: faster, and fewer bytes to send between processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class ByteProcessor:
    """An image processor's resizing and cropping on 8-bit pixels, with rescaling and normalisation as a lookup table.

    CLIP's and SigLIP's image processors compute each of 150,000 values, which can only be one of 256 per channel, and
    convert from Pillow to numpy and back to resize. This takes 2 ms per image of 450 × 450 pixels instead of 3.5, and
    workers send a quarter of the bytes. `byte_processor` returns one only if its results are identical to the bit.

    Attributes:
        size: `(height, width)` to resize to, or the length of the shorter edge.
        crop: `(height, width)` of the centre crop; None for no crop.
        resample: Pillow's number of the resampling filter.
        values: the output for each 8-bit value in each channel, float32 `(3, 256)`.
    """

    size: tuple[int, int] | int
    crop: tuple[int, int] | None
    resample: int
    values: NDArray[np.float32]

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """The 8-bit pixels of an RGB image, `(3, height, width)`."""
        width, height = image.size
        if isinstance(self.size, int):
            shorter = min(width, height)
            width, height = int(self.size * width / shorter), int(self.size * height / shorter)
        else:
            height, width = self.size
        image = image.resize((width, height), Image.Resampling(self.resample))
        if self.crop is not None:
            left, top = (width - self.crop[1]) // 2, (height - self.crop[0]) // 2
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def look_up(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """The image processor's output for 8-bit pixels: `(images, 3, height, width)`."""
        found = np.empty((len(pictures), *pictures[0].shape), np.float32)
        # A single channel fits into the CPU cache.
        for picture, into in zip(pictures, found, strict=True):
            for channel, values in enumerate(self.values):
                np.take(values, picture[channel], out=into[channel], mode="clip")
        return found

    def look_up_on_device(self, pictures: Tensor, dtype: torch.dtype) -> Tensor:
        """The values of `look_up`, rounded to `dtype`, for 8-bit pixels on a device: `(images, 3, height, width)`."""
        values = torch.from_numpy(self.values).to(dtype).to(pictures.device)
        found = torch.empty(pictures.shape, dtype=dtype, device=pictures.device)
        # One channel at a time, since indices take four times the memory of the pixels.
        for channel in range(len(values)):
            indices = pictures[:, channel].reshape(-1).int()
            found[:, channel] = values[channel].index_select(0, indices).view_as(pictures[:, channel])
        return found


def byte_processor(image_processor: Any) -> ByteProcessor | None:
    """The 8-bit version of an image processor; None if its output differs in any bit on a set of test images."""
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    options = {"do_resize": False, "do_center_crop": False, "return_tensors": "np"}
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    try:
        size = image_processor.size
        crop = image_processor.crop_size if getattr(image_processor, "do_center_crop", False) else None
        found = ByteProcessor(
            size["shortest_edge"] if size.get("shortest_edge") else (size["height"], size["width"]),
            None if crop is None else (crop["height"], crop["width"]),
            int(image_processor.resample),
            image_processor([Image.fromarray(ramp)], **options)["pixel_values"][0].reshape(3, 256).astype(np.float32),
        )
        # A crop larger than the resized image needs padding, which is left to the image processor.
        if found.crop is not None and isinstance(found.size, int) and found.size < max(found.crop):
            return None
        for width, height in ((600, 401), (333, 600), (599, 599), (61, 97), (130, 5)):
            image = Image.fromarray(noise[:height, :width])
            expected = image_processor([image], return_tensors="np")["pixel_values"]
            if expected.dtype != np.float32 or not np.array_equal(found.look_up([found(image)]), expected):
                return None
    except (AttributeError, KeyError, TypeError, ValueError):
        # Not a processor of this kind.
        return None
    return found
