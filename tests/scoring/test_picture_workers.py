"""Image workers: how far they read ahead, how many are allowed, and the 8-bit version of image processors."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from aligngpt.data.images.reference import Picture
from aligngpt.scoring.byte_processor import byte_processor
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.picture_workers import PICTURES_PER_TASK, PictureWorkers
from aligngpt.scoring.preparation import Preparation, Prepared, Refused

PROCESSORS = {
    "clip": CLIPImageProcessorPil(),
    "clip that resizes to more than it keeps": CLIPImageProcessorPil(size={"shortest_edge": 257}),
    "siglip": SiglipImageProcessorPil(),
}
SIZES = ((500, 375), (375, 500), (640, 213), (64, 64), (31, 97), (3, 500), (224, 224), (225, 224), (1, 1))


def test_pictures_are_not_read_far_ahead_of_the_model(clip_scorer: PairScorer) -> None:
    given: list[int] = []

    def endless() -> Iterator[Picture]:
        while True:
            given.append(1)
            yield Picture("nothing", content=b"")

    with PictureWorkers(clip_scorer, 0) as workers:
        results = workers.prepare(endless())
        assert next(results) == Refused("empty", "nothing is empty")
        assert len(given) <= 2 * PICTURES_PER_TASK
        results.close()


def test_a_negative_number_of_workers_is_refused(clip_scorer: PairScorer) -> None:
    with pytest.raises(ValueError, match="expected 0 or more workers, found -1"):
        PictureWorkers(clip_scorer, -1)


@pytest.mark.parametrize("name", PROCESSORS)
def test_bytes_and_their_table_are_what_the_image_processor_makes_bit_by_bit(name: str) -> None:
    processor = PROCESSORS[name]
    found = byte_processor(processor)
    assert found is not None
    generator = np.random.default_rng(4)
    for width, height in SIZES:
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected = processor([image], return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(found.look_up([found(image)]), expected)


class _Mirroring(CLIPImageProcessorPil):
    """Also mirrors the image, which no lookup table of pixel values can do."""

    def normalize(self, image: Any, *args: Any, **options: Any) -> Any:
        return super().normalize(image, *args, **options)[..., ::-1].copy()


@pytest.mark.parametrize(
    "processor",
    [
        _Mirroring(),
        CLIPImageProcessorPil(crop_size={"height": 300, "width": 300}),
        CLIPImageProcessorPil(do_resize=False),
        CLIPImageProcessorPil(do_normalize=False, do_rescale=False),
        lambda images, **_: None,
    ],
)
def test_an_image_processor_that_does_anything_else_is_used_itself(processor: Any) -> None:
    assert byte_processor(processor) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prepared_pictures_become_the_same_pixels_with_and_without_bytes(dtype: torch.dtype) -> None:
    stream = io.BytesIO()
    Image.effect_noise((300, 260), 90).convert("RGB").save(stream, "PNG")
    picture = Picture("noise", content=stream.getvalue())
    processor = PROCESSORS["clip"]
    made = []
    for in_bytes in (byte_processor(processor), None):
        preparation = Preparation(processor, dtype, in_bytes)
        (prepared,) = preparation([picture])
        assert isinstance(prepared, Prepared)
        assert (prepared.pixels.dtype == np.uint8) == (in_bytes is not None)
        made.append(preparation.pixel_values([prepared.pixels, prepared.pixels]).to(dtype))
    assert torch.equal(*made)
