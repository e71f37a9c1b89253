"""What a file has twice under one name is refused, where a reader would keep only one of the two."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aligngpt.data.records.columns import READ_COLUMNS, RECORD_IDS
from aligngpt.data.records.fields import IMAGE_FIELDS
from aligngpt.data.records.pairs import Unusable, open_pairs
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.preparing import prepare_samples
from aligngpt.data.samples.reading import read_samples
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.csv import QUESTION_COLUMNS
from aligngpt.levels.making import open_scores
from aligngpt.scoring.score_files import ScoresError

TWICE = '{"caption": "x", "similarity": 2, "similarity": 5}'


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))


def unusable(source: Path, **columns: Any) -> list[tuple[str, str]]:
    pairs = open_pairs(source, **columns)
    found = [one for shard in pairs.shards() for one in pairs.read(shard)]
    return [(one.reason, one.detail) for one in found if isinstance(one, Unusable)]


def reject_of(source: Path, tmp_path: Path) -> dict[str, Any]:
    with Rejects(tmp_path / "rejects.jsonl", max_share=1.0) as rejects, pytest.raises(SourceError):
        prepare_samples(source, rejects=rejects)
    (line,) = (tmp_path / "rejects.jsonl").read_text().splitlines()
    reject: dict[str, Any] = json.loads(line)
    return reject


@pytest.mark.parametrize(
    ("header", "name"),
    [("image,caption,caption", "caption"), ("image,image,caption", "image"), ("image,caption,level,level", "level")],
)
def test_a_column_of_a_csv_file(header: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n" + ",".join("1" * len(header.split(","))) + "\n")
    with pytest.raises(SourceError, match=f"has 2 columns {name}; rename all but the one to read"):
        list(read_samples(tmp_path / "a.csv", Rejects(None)))


def test_a_column_of_questions(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,question,answer,answer\n0.png,what?,a,b\n")
    with pytest.raises(SourceError, match="has 2 columns answer"):
        list(read_samples(tmp_path / "a.csv", Rejects(None)))


def test_a_column_that_no_question_is_read_from_may_be_there_twice(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,question,answer,note,note,,\n0.png,what?,a cat,x,y,,\n")
    ((sample, _),) = read_samples(tmp_path / "a.csv", Rejects(None))
    assert sample.turns[1].text == "a cat"


def test_the_columns_of_questions_are_those_that_records_are_read_from() -> None:
    read = {*READ_COLUMNS, *RECORD_IDS, *IMAGE_FIELDS, "caption", "text"}
    assert read == QUESTION_COLUMNS


def test_a_column_that_is_not_read_may_be_there_twice(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption,url,url,,\n0.png,a cat,x,y,,\n")
    ((sample, _),) = read_samples(tmp_path / "a.csv", Rejects(None))
    assert sample.caption == "a cat"


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_column_of_a_parquet_file_or_a_saved_data_set(suffix: str, tmp_path: Path) -> None:
    names = ["image", "caption", "caption"]
    table = pa.Table.from_arrays([pa.array([text]) for text in ("0.png", "one", "two")], names=names)
    if suffix == "parquet":
        source = tmp_path / "a.parquet"
        pq.write_table(table, source)
        with pytest.raises(SourceError, match="has 2 columns caption"):
            open_pairs(source).shards()
    else:
        source = tmp_path / "saved"
        source.mkdir()
        with pa.OSFile(str(source / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        (source / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
        (source / "dataset_info.json").write_text("{}")
    with pytest.raises(SourceError, match="has 2 columns caption"):
        prepare_samples(source, rejects=Rejects(None), check_images=False)


def test_a_score_column(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([0.5]), pa.array([0.25])], names=["score", "score"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ScoresError, match="has 2 columns score"):
        open_scores(tmp_path / "a.parquet")


def test_a_score_of_a_json_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"score": 0.5}\n{"score": 0.1, "score": 0.9}\n')
    with pytest.raises(ScoresError, match=r"record 1 of .*a.jsonl has a duplicate key"):
        list(open_scores(tmp_path / "a.jsonl").batches())


def test_a_key_of_the_json_in_a_tar_file(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("0.png", stream.getvalue()), ("0.txt", b"a text"), ("0.json", TWICE.encode())):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert [reason for reason, _ in unusable(tmp_path / "a.tar")] == ["repeated_key"]
    assert reject_of(tmp_path / "a.tar", tmp_path)["reason"] == "repeated_key"


def test_a_key_of_the_json_beside_an_image(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    (folder / "a.json").write_text(TWICE)
    ((reason, detail),) = unusable(folder)
    assert reason == "broken_text" and "a.json: the record has a duplicate key" in detail


def test_a_key_of_a_json_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"file_name": "0.png", "text": "a", "text": "b"}\n')
    assert [reason for reason, _ in unusable(tmp_path / "a.jsonl")] == ["repeated_key"]
    rejects = Rejects(None, max_share=1.0)
    assert not list(read_samples(tmp_path / "a.jsonl", rejects)) and rejects.by_reason["repeated_key"] == 1


def test_texts_beside_an_image(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("a sentence")
        (folder / f"{name}.json").write_text('{"alt": "a third"}')
    (folder / "a.caption").write_text("tag, tag")
    (folder / "b.caption").write_text("a sentence\n")
    ((reason, detail),) = unusable(folder)
    assert reason == "text_count" and "a.png has a.caption and a.txt, which differ" in detail
    # A field that is named is read instead of both.
    assert not unusable(folder, caption_column="alt")


def test_texts_of_a_sample_in_a_tar_file(tmp_path: Path) -> None:
    contents = {"0.png": b"x", "0.caption": b"tag, tag", "0.txt": b"a sentence"}
    contents |= {"1.png": b"x", "1.caption": b"a sentence", "1.txt": b"a sentence\n"}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    ((reason, detail),) = unusable(tmp_path / "a.tar")
    assert reason == "text_count" and "its texts '0.caption' and '0.txt' differ" in detail


@pytest.mark.parametrize(
    ("images", "image_id", "said"),
    [
        (
            '[{"id": 9, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}]',
            "9",
            "the id 9 twice .* a.png and b",
        ),
        ('[{"id": [9], "file_name": "a.png"}]', "9", "`id` of row 0 of `images` must be a number or a text"),
        ('[{"id": 9, "file_name": "a.png"}]', "[9]", "`image_id` of row 0 of `annotations` must be a number"),
        ('[{"id": 9, "file_name": "a.png", "file_name": "b.png"}]', "9", "row 0 of `images` has a duplicate key"),
    ],
)
def test_an_id_or_a_key_of_a_coco_file(images: str, image_id: str, said: str, tmp_path: Path) -> None:
    annotations = f'[{{"image_id": {image_id}, "id": 1, "caption": "a cat"}}]'
    (tmp_path / "a.json").write_text(f'{{"images": {images}, "annotations": {annotations}}}')
    with pytest.raises(SourceError, match=said):
        open_pairs(tmp_path / "a.json")


def test_an_image_of_a_coco_file_may_be_listed_twice(tmp_path: Path) -> None:
    images = [{"id": 9, "file_name": "a.png"}] * 2
    annotations = [{"image_id": 9, "id": 1, "caption": "a cat"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    assert not unusable(tmp_path / "a.json")
