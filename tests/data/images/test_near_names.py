"""A missing image's message names the file that was probably meant."""

import unicodedata
from pathlib import Path

import pytest

from aligngpt.data.images import near_names as module
from aligngpt.data.images.near_names import near_names
from aligngpt.data.images.opening import ImageError, check_image

NFC = unicodedata.normalize("NFC", "münchen.jpg")
NFD = unicodedata.normalize("NFD", NFC)


@pytest.mark.parametrize(
    ("named", "there"),
    [
        (NFD, NFC),
        (NFC, NFD),
        ("a%20b.jpg", "a b.jpg"),
        ("a b.jpg", "a%20b.jpg"),
        ("train\\a.jpg", "train/a.jpg"),
        ("Train/A.JPG", "train/a.jpg"),
        ("a.jpg", "a.png"),
        ("TRAIN\\a%20b.jpeg", "train/A b.jpg"),
    ],
)
def test_the_file_that_differs_in_spelling_is_named(named: str, there: str, tmp_path: Path) -> None:
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_bytes(b"x")
    (tmp_path / "other.jpg").write_bytes(b"x")
    assert near_names(tmp_path / named) == [tmp_path / there]
    with pytest.raises(ImageError) as caught:
        check_image(tmp_path / named)
    assert caught.value.reason == "missing"
    shown = Path(there).name if (tmp_path / named).parent == (tmp_path / there).parent else str(tmp_path / there)
    assert str(caught.value).endswith(f"does not exist, but found {shown}; correct the name in the record")


@pytest.mark.parametrize("named", ["b.jpg", "nowhere/a.jpg", "a.jpg/b.jpg", "x" * 300])
def test_nothing_is_named_if_nothing_is_near(named: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "b.txt").write_bytes(b"x")
    assert near_names(tmp_path / named) == []


def test_a_folder_is_listed_once_for_many_missing_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "A.jpg").write_bytes(b"x")
    listed = []
    scandir = module.os.scandir
    monkeypatch.setattr(module.os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    module._entries.cache_clear()
    assert [near_names(tmp_path / f"{number}.jpg") for number in range(5)] == [[]] * 5
    assert near_names(tmp_path / "a.jpg") == [tmp_path / "A.jpg"]
    assert listed == [tmp_path]
