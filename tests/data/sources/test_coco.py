"""COCO's captions are read as pairs."""

import json
from pathlib import Path
from typing import Any

import pytest

from aligngpt.cache import CACHE_VARIABLE
from aligngpt.data.records.pairs import Pair, Unusable, open_pairs
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import read_samples
from aligngpt.data.sources.base import SourceError

COCO: dict[str, Any] = {
    "info": {"year": 2017},
    "images": [{"id": 9, "file_name": "000009.jpg"}, {"id": 25, "file_name": "000025.jpg"}],
    "annotations": [
        {"image_id": 25, "id": 101, "caption": "a giraffe "},
        {"image_id": 9, "id": 102, "caption": "a plate of food"},
        {"image_id": 9, "id": 103, "caption": "bread"},
        {"image_id": 7, "id": 104, "caption": "of no image"},
        {"image_id": 9, "id": 105, "caption": ""},
    ],
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def written(path: Path, found: object, indent: int | None = None) -> Path:
    path.write_text(json.dumps(found, indent=indent))
    return path


@pytest.mark.parametrize("indent", [None, 1])
def test_annotations_are_pairs_with_their_own_ids(indent: int | None, tmp_path: Path) -> None:
    pairs = open_pairs(written(tmp_path / "captions.json", COCO, indent), shard_size=2)
    found = [one for shard in pairs.shards() for one in pairs.read(shard)]
    good = [(one.id, one.caption, one.picture.path) for one in found if isinstance(one, Pair)]
    assert good == [
        ("101", "a giraffe", tmp_path / "000025.jpg"),
        ("102", "a plate of food", tmp_path / "000009.jpg"),
        ("103", "bread", tmp_path / "000009.jpg"),
    ]
    bad = [(one.reason, one.detail) for one in found if isinstance(one, Unusable)]
    assert bad[0] == ("no_picture", "annotation 104 of captions.json is about the image 7, which is not in `images`")
    assert bad[1][0] == "empty_text"


def test_training_reads_the_same_pairs(tmp_path: Path) -> None:
    rejects = Rejects(None, max_share=1.0)
    samples = [one for one, _ in read_samples(written(tmp_path / "captions.json", COCO), rejects)]
    assert (samples[0].id, samples[0].images, samples[0].caption) == ("101", ("000025.jpg",), "a giraffe")
    assert len(samples) == 3 and rejects.by_reason == {"no_picture": 1, "empty_text": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [{"image_id": 9, "id": 1, "bbox": [0, 0, 1, 1]}]}, "COCO file without captions"),
        ({"images": {"9": "a.jpg"}}, "one JSON object with the keys info, images, annotations; expected an array"),
        ({"annotations": []}, "has no records"),
    ],
)
def test_another_object_is_told_what_was_expected(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", COCO | change)
    with pytest.raises(SourceError) as caught:
        open_pairs(path).shards()
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(COCO, indent=1)[:-50])
    with pytest.raises(SourceError, match="one JSON object that cannot be read"):
        open_pairs(path)


def test_a_field_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no column for the caption: expected text, found id, image_id, caption"):
        open_pairs(written(tmp_path / "a.json", COCO), caption_column="text")
