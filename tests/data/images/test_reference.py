"""An image can be opened wherever it is stored, or the error says why not."""

import io
import pickle
from pathlib import Path

import pytest
from PIL import Image

from aligngpt.data.images.opening import ImageError
from aligngpt.data.images.reference import Picture


def png(color: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), color).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def inside(tmp_path: Path) -> Picture:
    content = png("blue")
    path = tmp_path / "many"
    path.write_bytes(b"before" + content + b"after")
    return Picture("0.png", path=path, offset=6, length=len(content))


def test_a_whole_file_a_stretch_of_one_and_bytes_are_read_and_opened(tmp_path: Path, inside: Picture) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png())
    for picture, content in [
        (Picture("a.png", path=file), png()),
        (inside, png("blue")),
        (Picture("row 3", content=png()), png()),
    ]:
        again = pickle.loads(pickle.dumps(picture))
        assert again == picture
        assert again.read() == content
        assert (again.open().size, again.open().mode) == ((4, 3), "RGB")


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (Picture("row 3", content=b""), "empty"),
        (Picture("row 3"), "missing"),
        (Picture("a.png", path=Path("nowhere") / "a.png"), "missing"),
        (Picture("a.png", path=Path("nowhere") / "a.png", length=3), "missing"),
        (Picture("a.png", path=Path("a\0.png"), length=3), "unreadable"),
    ],
)
def test_what_is_not_there_has_a_reason(picture: Picture, reason: str) -> None:
    for attempt in (picture.read, picture.open):
        with pytest.raises(ImageError) as caught:
            attempt()
        assert caught.value.reason == reason


def test_an_empty_file_and_a_folder_have_a_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    for name, reason in [("empty.png", "empty"), (".", "not_an_image")]:
        picture = Picture(name, path=tmp_path / name)
        for attempt in (picture.read, picture.open):
            with pytest.raises(ImageError) as caught:
                attempt()
            assert caught.value.reason == reason


def test_a_stretch_beyond_the_end_of_its_file_is_cut_short(inside: Picture) -> None:
    assert inside.path is not None
    with pytest.raises(ImageError, match="expected 1000000000000 bytes") as caught:
        Picture("0.png", path=inside.path, offset=6, length=10**12).open()
    assert caught.value.reason == "truncated"
    with pytest.raises(ImageError) as caught:
        Picture("0.png", path=inside.path, offset=10**6, length=10).read()
    assert caught.value.reason == "empty"


def test_an_error_names_the_picture_that_came_as_bytes() -> None:
    with pytest.raises(ImageError, match=r"row 3 of a\.parquet is not an image") as caught:
        Picture("row 3 of a.parquet", content=b"no picture").open()
    assert caught.value.reason == "not_an_image"
