"""Tests of reading realistic files of records, valid and broken."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aligngpt.data.records.sample import parse_record, to_record
from aligngpt.data.rejects import Rejects, TooManyRejects
from aligngpt.data.samples.reading import load_samples, read_samples, trouble_with, write_records
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.byte_ranges import BrokenLine
from aligngpt.data.sources.json import read_records

RECORDS = [{"image": "a.png", "caption": f"Caption {number}: ü 猫 😀"} for number in range(3)]


def lines_of(*records: object) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def source_error(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        list(read_records(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    return tmp_path


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RECORDS),
        "\n  " + json.dumps(RECORDS, indent=2, ensure_ascii=False) + "\n\n",
        lines_of(*RECORDS),
        "\n" + lines_of(*RECORDS).replace("\n", "\r\n\r\n"),
        lines_of(*RECORDS).rstrip("\n"),
    ],
)
def test_arrays_and_lines_are_told_apart_by_what_they_hold(tmp_path: Path, name: str, bom: str, content: str) -> None:
    path = written(tmp_path / name, bom + content)
    assert list(read_records(path)) == list(enumerate(RECORDS))


def test_lines_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = written(tmp_path / "data.jsonl", lines_of(*RECORDS).encode() * 10_000 + b"\xff")
    records = read_records(path)
    assert next(records) == (0, RECORDS[0])
    assert next(records) == (1, RECORDS[1])


@pytest.mark.parametrize("content", ["", " \n\n ", "\ufeff", "\ufeff\n"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: str) -> None:
    assert source_error(written(tmp_path / "data.json", content)).endswith("is empty")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in source_error(tmp_path / "gone.json")
    assert "cannot be read: Is a directory" in source_error(tmp_path)


def test_a_byte_that_is_not_utf8_costs_its_record_only(tmp_path: Path) -> None:
    good = lines_of(*RECORDS).encode()
    bad = '{"caption": "größer"}\n'.encode("latin-1")
    lines = written(tmp_path / "data.jsonl", good + bad + good)
    array = written(tmp_path / "data.json", b"[" + (good + bad + good).strip().replace(b"\n", b",\n") + b"]")
    for path in (lines, array):
        rejects = Rejects(None)
        assert [sample.record for sample, _ in read_samples(path, rejects)] == [0, 1, 2, 4, 5, 6]
        assert rejects.by_reason == {"broken_text": 1}
        (found,) = (record for _, record in read_records(path) if isinstance(record, BrokenLine))
        assert "line 4" in found.reason


def test_a_file_in_another_encoding_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    latin = written(tmp_path / "data.jsonl", '{"caption": "größer"}\n'.encode("latin-1") * 20)
    assert source_error(latin).endswith("is not UTF-8 in line 1; save it as UTF-8")
    windows = written(tmp_path / "data.json", json.dumps(RECORDS).encode("utf-16"))
    assert source_error(windows).endswith("is not UTF-8 in line 1; save it as UTF-8")


def test_a_packed_file_is_an_error_that_names_the_program(tmp_path: Path) -> None:
    assert "is compressed with gzip; decompress" in source_error(written(tmp_path / "a.jsonl.gz", gzip.compress(b"{}")))
    assert "is compressed with zip; decompress it" in source_error(written(tmp_path / "a.json", b"PK\x03\x04"))


@pytest.mark.parametrize("content", ["image,caption\na.png,A cat.\n", "- a: 1\n"])
def test_a_file_of_another_format_is_an_error(tmp_path: Path, content: str) -> None:
    path = written(tmp_path / "data.json", content)
    assert source_error(path).endswith("is neither a JSON array nor JSON lines of records")


@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_is_an_error_that_names_its_keys(tmp_path: Path, indent: int | None) -> None:
    content = json.dumps({"info": {}, "data": RECORDS}, indent=indent)
    assert "one JSON object with the keys info, data" in source_error(written(tmp_path / "data.json", content))


@pytest.mark.parametrize("cut", [2, 30, 100])
def test_an_array_cut_short_is_an_error_that_names_the_line(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "data.json", json.dumps(RECORDS, indent=1)[:-cut])
    assert "is not a complete JSON array: line " in source_error(path)


@pytest.mark.parametrize("broken", ['{"image": "a.png", "capt', '{"a": 1} {"b": 2}', "garbage", "{'image': 'a.png'}"])
def test_a_broken_line_is_a_reject_and_the_rest_is_read(tmp_path: Path, broken: str) -> None:
    path = written(tmp_path / "data.jsonl", lines_of(RECORDS[0]) + broken + "\n" + lines_of(RECORDS[2]))
    with Rejects(tmp_path / "rejects.jsonl") as rejects:
        found = list(read_samples(path, rejects))
    assert [(sample.record, record) for sample, record in found] == [(0, RECORDS[0]), (2, RECORDS[2])]
    reject = json.loads((tmp_path / "rejects.jsonl").read_text())
    assert (reject["record"], reject["id"], reject["reason"]) == (1, None, "broken_line")
    assert reject["detail"].startswith("line 2: ")


@pytest.mark.parametrize("hostile", ["[" * 100_000, '{"a": ' + "[" * 100_000, '{"score": ' + "1" * 5000 + "}"])
def test_json_that_python_will_not_read_is_a_reject_or_an_error(tmp_path: Path, hostile: str) -> None:
    path = written(tmp_path / "data.jsonl", lines_of(RECORDS[0]) + hostile + "\n" + lines_of(RECORDS[1]))
    assert [type(record) for _, record in read_records(path)] == [dict, BrokenLine, dict]
    source_error(written(tmp_path / "data.json", f"[{hostile}]"))


def test_records_that_are_no_samples_are_rejects(tmp_path: Path) -> None:
    records = [RECORDS[0], 3, ["a"], None, {"id": 12, "image": "a.png"}, {"id": None}]
    for content in (json.dumps(records), lines_of(*records)):
        path = written(tmp_path / "data", content)
        with Rejects(tmp_path / "rejects.jsonl") as rejects:
            assert [sample.record for sample, _ in read_samples(path, rejects)] == [0]
        assert rejects.by_reason == {"not_an_object": 3, "no_conversation": 2}
        lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
        assert [(line["record"], line["id"]) for line in lines] == [
            (1, None),
            (2, None),
            (3, None),
            (4, "12"),
            (5, None),
        ]


def test_the_samples_whose_images_are_there_are_loaded(folder: Path) -> None:
    path = written(folder / "data.json", json.dumps([*RECORDS, {"question": "1 + 1?", "answer": "2"}]))
    rejects = Rejects(None)
    assert [sample.record for sample in load_samples(path, rejects=rejects)] == [0, 1, 2, 3]
    assert rejects.count == 0


def test_samples_of_bad_images_are_rejects(folder: Path) -> None:
    (folder / "empty.png").touch()
    names = [
        "a.png",
        "gone.png",
        "empty.png",
        "../a.png",
        "/etc/passwd",
        "data.jsonl",
        "\ud83d.png",
        ["a.png", "no.png"],
    ]
    records = [{"id": f"r{i}", "image": name, "caption": "A cat."} for i, name in enumerate(names)]
    path = written(folder / "data.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    with Rejects(folder / "rejects.jsonl", max_share=1) as rejects:
        assert [sample.id for sample in load_samples(path, rejects=rejects)] == ["r0"]
    assert rejects.by_reason == {"missing": 2, "empty": 1, "outside_root": 3, "not_an_image": 1}
    lines = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"r{i}" for i in range(1, 8)]
    assert lines[0]["detail"] == f"{folder / 'gone.png'} does not exist"


def test_images_are_not_looked_at_when_they_need_not_be(folder: Path) -> None:
    records = [{"image": name, "caption": "A cat."} for name in ("gone.png", "../a.png")]
    path = written(folder / "data.jsonl", lines_of(*records))
    rejects = Rejects(None, max_share=0.5)
    assert [s.images for s in load_samples(path, rejects=rejects, check_images=False)] == [("gone.png",)]
    assert rejects.by_reason == {"outside_root": 1}


def test_too_many_rejects_end_the_job(folder: Path) -> None:
    gone = [{"image": "gone.png", "caption": "A cat."}]
    path = written(folder / "data.jsonl", lines_of(*RECORDS, *gone))
    assert len(load_samples(path, rejects=Rejects(None, max_share=0.25))) == 3
    with pytest.raises(TooManyRejects, match=r"1 of 4 records cannot be used \(25.0%.*missing 1"):
        load_samples(path, rejects=Rejects(None, max_share=0.2))


def test_a_wrong_image_root_ends_the_job_with_what_to_look_at(folder: Path) -> None:
    path = written(folder / "data.jsonl", lines_of(*RECORDS))
    (folder / "elsewhere").mkdir()
    with pytest.raises(TooManyRejects, match=r"missing 3.*image root"):
        load_samples(path, image_root=folder / "elsewhere", rejects=Rejects(None))
    for root in (folder / "gone", folder / "a.png"):
        with pytest.raises(SourceError, match=f"the image root {root} is not a folder"):
            load_samples(path, image_root=root, rejects=Rejects(None))


def test_a_mistyped_folder_is_an_error_about_the_file_not_the_image_root(tmp_path: Path) -> None:
    path = tmp_path / "mistyped" / "data.json"
    for root in (None, path.parent):
        with pytest.raises(SourceError, match=f"{path} cannot be read: No such file"):
            load_samples(path, image_root=root, rejects=Rejects(None))


def test_samples_without_a_level_are_rejects_where_one_is_needed(folder: Path) -> None:
    text: dict[str, Any] = {"question": "1 + 1?", "answer": "2"}
    path = written(folder / "data.jsonl", lines_of(RECORDS[0] | {"similarity": 0}, RECORDS[1], text))
    samples = load_samples(path, rejects=Rejects(None))
    leveled, without, no_image = (trouble_with(one, folder, require_level=True, check_images=True) for one in samples)
    assert leveled is None and no_image is None
    assert without is not None and without[0] == "no_level" and "aligngpt levels" in without[1]


@pytest.mark.parametrize("content", ["[]", lines_of({"image": "gone.png", "caption": "A cat."})])
def test_a_file_without_a_sample_is_an_error(folder: Path, content: str) -> None:
    path = written(folder / "data.json", content)
    with pytest.raises(SourceError, match=f"{path} contains no usable record"):
        load_samples(path, rejects=Rejects(None, max_share=1))


@pytest.mark.parametrize(("name", "start"), [("out.json", "[\n{"), ("out.jsonl", "{"), ("out", "{")])
def test_written_samples_are_read_back(tmp_path: Path, name: str, start: str) -> None:
    samples = [parse_record(record | {"similarity": i}, i) for i, record in enumerate(RECORDS)]
    path = tmp_path / "new" / name
    write_records(path, [to_record(sample) for sample in samples])
    text = path.read_text(encoding="utf-8")
    assert text.startswith(start) and "猫" in text and text.count("\n") == (5 if name == "out.json" else 3)
    assert [sample for sample, _ in read_samples(path, Rejects(None))] == samples


@pytest.mark.parametrize("name", ["out.json", "out.jsonl"])
def test_any_record_that_can_be_read_can_be_written(tmp_path: Path, name: str) -> None:
    records = [{"a": "half \ud83d", "b": "line\u2028break\n", "c": 1.5}]
    write_records(tmp_path / name, records)
    assert list(read_records(tmp_path / name)) == [(0, records[0])]


def test_records_that_cannot_be_written_leave_the_old_file(tmp_path: Path) -> None:
    path = written(tmp_path / "out.json", "old")
    with pytest.raises(TypeError):
        write_records(path, [*RECORDS, {"a": object()}])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
