"""Pictures and maps are drawn as the model sees them."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from aligngpt.inspecting.content import Dose, DoseRow
from aligngpt.inspecting.figures import cosine_heat_map, dose_figure
from aligngpt.inspecting.maps import draw, picture_of
from aligngpt.reports.figures import to_svg
from aligngpt.reports.thumbnails import Thumbnail


def pixels_of(thumbnail: Thumbnail) -> np.ndarray:
    content = base64.b64decode(thumbnail.address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_the_best_matching_part_is_the_lightest() -> None:
    cosines = np.array([[-0.1, 0.0], [0.05, 0.3]])
    drawn = draw(Image.new("RGB", (32, 32), "grey"), cosines)
    light = pixels_of(drawn.map).sum(axis=2)
    quarters = np.array([[light[20, 20], light[20, -20]], [light[-20, 20], light[-20, -20]]])
    assert np.unravel_index(quarters.argmax(), (2, 2)) == (1, 1)
    assert np.unravel_index(quarters.argmin(), (2, 2)) == (0, 0)


def test_a_map_of_equal_cosines_has_one_colour() -> None:
    drawn = draw(Image.new("RGB", (8, 8), "grey"), np.full((4, 4), 0.2))
    assert np.ptp(pixels_of(drawn.map), axis=(0, 1)).max() <= 2


@pytest.mark.parametrize("normalised", [True, False])
def test_a_picture_is_what_the_processor_made_of_it(assembled, normalised: bool) -> None:
    _, processor = assembled()
    processor.image_processor.do_normalize = normalised
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pixels = processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
    found = picture_of(pixels[0], processor.image_processor)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(picture)).max() <= 1


@pytest.mark.parametrize("levels", [2, 8, 40])
def test_figures_hold_any_number_of_levels(levels: int) -> None:
    cosines = np.eye(levels).tolist()
    drawn = to_svg(cosine_heat_map(cosines), "cosines", "cosines")
    assert drawn.count(">1.00<") == (levels if levels <= 16 else 0)
    rows = [DoseRow(level, (-level, None, None), (0, None, None)) for level in range(1, levels + 1)]
    one = to_svg(dose_figure(Dose(3, 1, (-1, None, None), rows, (0, None, None))), "dose", "dose")
    assert "forced level" in one
