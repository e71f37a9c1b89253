from pathlib import Path

import pytest
from PIL import Image

from aligngpt.data.images.opening import ImageError
from aligngpt.quickstart.clipart.pictures import SIDE, look_of, small_picture


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A transparent page with a red bar of 20 × 10 in a corner."""
    image = Image.new("RGBA", (200, 100), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (170, 80, 190, 90))
    image.save(tmp_path / "page.png")
    return tmp_path / "page.png"


def test_a_drawing_is_cropped_and_fills_the_square_on_white(page: Path) -> None:
    picture = small_picture(page)
    assert picture is not None and (picture.size, picture.mode) == ((SIDE, SIDE), "RGB")
    pixels = {place: picture.getpixel(place) for place in ((0, 0), (42, 10), (2, 42), (81, 42), (42, 70))}
    assert pixels[2, 42] == pixels[81, 42] == (255, 0, 0)
    assert pixels[0, 0] == pixels[42, 10] == pixels[42, 70] == (255, 255, 255)


@pytest.mark.parametrize("colour", [(9, 9, 9, 0), (255, 255, 255, 255)])
def test_an_empty_page_gives_no_picture(tmp_path: Path, colour: tuple[int, ...]) -> None:
    Image.new("RGBA", (20, 20), colour).save(tmp_path / "empty.png")
    assert small_picture(tmp_path / "empty.png") is None


def test_a_large_file_is_refused_before_it_is_decoded(page: Path) -> None:
    with pytest.raises(ImageError, match="200 × 100 pixels"):
        small_picture(page, max_pixels=19_999)


def test_a_file_that_is_cut_short_is_an_image_error(page: Path) -> None:
    page.write_bytes(page.read_bytes()[:-40])
    with pytest.raises(ImageError):
        small_picture(page)


def test_the_same_drawing_in_another_colour_and_size_looks_the_same(page: Path) -> None:
    def bar(colour: str, left: int) -> Image.Image:
        image = Image.new("RGB", (84, 84), "white")
        image.paste(colour, (left, 10, left + 20, 70))
        return image

    assert look_of(bar("red", 10)) == look_of(bar("blue", 10)) != look_of(bar("red", 50))
