"""Folders of images with a caption in a file beside each."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from aligngpt.data.records.pairs import Pair, Unusable, open_pairs
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.preparing import prepare_samples
from aligngpt.data.samples.reading import load_samples
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.finding import archive_at, content_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as img2dataset writes it, with one more record in its root."""
    root = tmp_path / "photos"
    for number, part in enumerate(("00000", "00000", "00001")):
        (root / part).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / part / f"{number}.jpg")
        (root / part / f"{number}.txt").write_text(f"caption {number}: ü", encoding="utf-8")
        (root / part / f"{number}.json").write_text(json.dumps({"caption": "of json", "alt": f"alt {number}"}))
        (root / f"{part}_stats.json").write_text("{}")
        pyarrow.parquet.write_table(pyarrow.table({"url": ["http://x"], "key": ["0"]}), root / f"{part}.parquet")
    Image.new("RGB", (4, 4)).save(root / "a.b.PNG")
    (root / "a.b.txt").write_text("dotted")
    return root


def test_pairs_at_any_depth_are_read(folder: Path) -> None:
    pairs = open_pairs(folder, shard_size=1)
    found = [one for shard in pairs.shards() for one in pairs.read(shard)]
    assert pairs.kind == "files" and all(isinstance(one, Pair) for one in found)
    assert [(one.id, one.caption) for one in found if isinstance(one, Pair)] == [
        ("a.b", "dotted"),
        ("00000/0", "caption 0: ü"),
        ("00000/1", "caption 1: ü"),
        ("00001/2", "caption 2: ü"),
    ]
    for one in found:
        assert isinstance(one, Pair)
        one.picture.check()


@pytest.mark.parametrize("suffix", ["avif", "jfif"])
@pytest.mark.parametrize("packed", [False, True])
def test_rarer_suffixes_are_images(suffix: str, packed: bool, tmp_path: Path) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(b"")
    (tmp_path / "a.txt").write_text("rare")
    source = tmp_path
    if packed:
        source = tmp_path / "packed" / "a.tar"
        source.parent.mkdir()
        with tarfile.open(source, "w") as tar:
            for name in (f"a.{suffix}", "a.txt"):
                tar.add(tmp_path / name, name)
    pairs = open_pairs(source)
    (one,) = pairs.read(pairs.shards()[0])
    assert isinstance(one, Pair) and one.caption == "rare"


def test_training_reads_the_same_samples(folder: Path) -> None:
    assert archive_at(folder) is None
    samples = load_samples(folder, rejects=Rejects(None, max_share=0.0))
    assert [one.images for one in samples] == [("a.b.PNG",), ("00000/0.jpg",), ("00000/1.jpg",), ("00001/2.jpg",)]


def test_a_field_of_the_json_can_be_named(folder: Path) -> None:
    pairs = open_pairs(folder / "00000", caption_column="alt")
    found = [one for shard in pairs.shards() for one in pairs.read(shard)]
    assert [one.caption for one in found if isinstance(one, Pair)] == ["alt 0", "alt 1"]
    assert pairs.settings()["caption_column"] == "alt"
    again = open_pairs(folder / "00000", caption_column=open_pairs(folder / "00000").settings()["caption_column"])
    assert next(one.caption for one in again.read(again.shards()[0]) if isinstance(one, Pair)) == "caption 0: ü"


@pytest.mark.parametrize("names", [{"image_column": "picture"}, {"id_column": "uid"}])
def test_columns_that_there_are_not_are_refused(folder: Path, names: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match="omit --image-column and --id-column"):
        open_pairs(folder, **names)


def test_a_given_image_root_is_used(folder: Path, tmp_path: Path) -> None:
    pairs = open_pairs(folder, image_root=tmp_path)
    (one, *_) = pairs.read(pairs.shards()[0])
    assert isinstance(one, Pair) and one.picture.path == tmp_path / "a.b.PNG"


def test_what_is_no_pair_is_rejected_by_name(folder: Path) -> None:
    (folder / "alone.txt").write_text("no image")
    Image.new("RGB", (4, 4)).save(folder / "silent.jpg")
    Image.new("RGB", (4, 4)).save(folder / "a.b.jpg")
    (folder / "00001" / "2.txt").write_bytes("größer".encode("latin-1"))
    Image.new("RGB", (4, 4)).save(folder / "00001" / "3.jpg")
    (folder / "00001" / "3.json").write_text("[1]")
    Image.new("RGB", (4, 4)).save(folder / "00001" / "4.jpg")
    (folder / "00001" / "4.txt").write_text(" ")
    pairs = open_pairs(folder)
    found = [one for shard in pairs.shards() for one in pairs.read(shard)]
    bad = {one.reason: one.detail for one in found if isinstance(one, Unusable) and one.reason != "broken_text"}
    assert set(bad) == {"no_picture", "no_caption", "image_count", "empty_text"}
    assert str(folder / "alone.txt") in bad["no_picture"] and str(folder / "silent.jpg") in bad["no_caption"]
    assert "a.b.PNG and a.b.jpg" in bad["image_count"]
    broken = [one.detail for one in found if isinstance(one, Unusable) and one.reason == "broken_text"]
    assert broken[0].endswith("2.txt is not UTF-8 at its byte 2")
    assert broken[1].endswith("3.json: expected a JSON object, found list")


@pytest.mark.parametrize("name", ["a.b.txt", "00000/0.json"])
def test_a_text_that_links_out_of_the_folder_is_not_read(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "key").write_text('{"caption": "secret"}')
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "key")
    (folder / "00001" / "2.txt").unlink()
    (folder / "00001" / "2.txt").symlink_to(folder / "00000" / "1.txt")
    before = content_of(folder)
    pairs = open_pairs(folder, shard_size=1)
    found = [one for shard in pairs.shards() for one in pairs.read(shard)]
    (bad,) = (one for one in found if isinstance(one, Unusable))
    assert bad.reason == "outside_root"
    assert bad.detail.startswith(f"{folder / name} is a symbolic link to {tmp_path / 'key'}")
    assert [one.caption for one in found if isinstance(one, Pair)][-1] == "caption 1: ü"
    (tmp_path / "key").write_text('{"caption": "SECRET"}')
    assert content_of(folder) == before


def test_the_fingerprint_follows_names_and_texts(folder: Path, tmp_path: Path) -> None:
    before = content_of(folder)
    assert content_of(folder.rename(tmp_path / "moved")) == before
    (tmp_path / "moved" / "a.b.txt").write_text("Dotted")
    assert content_of(tmp_path / "moved") != before


def test_a_folder_without_captions_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(SourceError, match="is not a source of pairs"):
        open_pairs(tmp_path)


def test_other_json_files_are_no_records(folder: Path) -> None:
    before = content_of(folder)
    (folder / "scores").mkdir()
    (folder / "scores" / "manifest.json").write_text("{}")
    pairs = open_pairs(folder)
    assert all(isinstance(one, Pair) for shard in pairs.shards() for one in pairs.read(shard))
    assert content_of(folder) == before


def test_the_parquet_layout_of_img2dataset_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    found = {"jpg": (tmp_path / "a.jpg").read_bytes(), "caption": "one", "key": "000", "status": "success"}
    lost = {"jpg": None, "caption": "two", "key": "001", "status": "failed_to_download"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([found, lost]), tmp_path / "00000.parquet")
    pairs = open_pairs(tmp_path / "00000.parquet")
    good, bad = pairs.read(pairs.shards()[0])
    assert isinstance(good, Pair) and (good.id, good.picture.content) == ("000", found["jpg"])
    assert isinstance(bad, Unusable) and (bad.id, bad.reason) == ("001", "no_picture")
    rejects = Rejects(None, max_share=0.5)
    (sample,) = prepare_samples(tmp_path / "00000.parquet", rejects=rejects)
    assert sample.caption == "one" and rejects.by_reason == {"no_picture": 1}
