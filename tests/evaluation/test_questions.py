"""Questions and the images that they are about, from archives in which names or images occur more than once."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aligngpt.checking.files import check_files
from aligngpt.data.rejects import Rejects
from aligngpt.evaluation.questions import Questions, read_questions


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))


def png(red: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def tar_of(red: int, answer: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        record = json.dumps({"question": "how red?", "answer": answer}).encode()
        for name, content in (("0.png", png(red)), ("0.json", record)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def reds(found: Questions) -> list[list[int]]:
    return [[found.open_image(name).getpixel((0, 0))[0] for name in one.images] for one in found.samples]


def test_each_question_is_about_its_own_image_if_two_have_one_name(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(10, "a little") + tar_of(90, "more") + tar_of(200, "very"))
    found = read_questions(tmp_path / "a.tar", image_root=None, rejects=Rejects(None))
    assert [one.turns[1].text for one in found.samples] == ["a little", "more", "very"]
    assert reds(found) == [[10], [90], [200]]
    assert len({one.images for one in found.samples}) == 3


def test_samples_with_different_images_of_one_name_are_not_identical(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(10, "red") + tar_of(90, "red"))
    (check,) = check_files([tmp_path / "a.tar"])
    assert check.samples == 2 and not check.identical.count


def test_equal_images_have_one_name_and_the_same_text_about_them_is_identical(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": png(red), "path": None}, "question": "how?", "answer": "so"} for red in (10, 90, 10)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read_questions(tmp_path / "a.parquet", image_root=None, rejects=Rejects(None))
    first, second, third = (one.images for one in found.samples)
    assert first == third != second and reds(found) == [[10], [90], [10]]
    (check,) = check_files([tmp_path / "a.parquet"])
    assert [(one.record, one.earlier) for one in check.identical.listed] == [(2, 0)]


def test_several_images_keep_their_names_and_order(tmp_path: Path) -> None:
    for red in (10, 90):
        (tmp_path / f"{red}.png").write_bytes(png(red))
    listed = [["10.png", "90.png"], ["90.png"], ["90.png", "./10.png"]]
    rows = [{"images": names, "question": "how?", "answer": "so"} for names in listed]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read_questions(tmp_path / "a.parquet", image_root=tmp_path, rejects=Rejects(None))
    assert reds(found) == [[10, 90], [90], [90, 10]]
    assert found.samples[2].images == ("90.png", "10.png")
