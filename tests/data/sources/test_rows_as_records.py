"""Rows of tables become records for training: their levels, and JSON rows that name an image in `file_name`."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from aligngpt.data.records.pairs import Pair, open_pairs
from aligngpt.data.records.sample import Sample
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import read_samples

TURNS = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))


def samples_of(path: Path, rejects: Rejects | None = None) -> list[Sample]:
    return [sample for sample, _ in read_samples(path, rejects or Rejects(None, max_share=0.0))]


@pytest.mark.parametrize(
    ("level", "similarity", "expected"),
    [
        ("3", "", (3, None)),
        ("3.0", "", (3, None)),
        ("3", "0.31", (3, 0.31)),
        ("3", "1.0", (3, 1.0)),
        ("3", "2", (3, None)),
        ("", "2", (3, None)),
        ("", "2.0", (None, 2.0)),
        ("", "0.31", (None, 0.31)),
    ],
)
def test_level_and_similarity_of_a_csv_row(
    level: str, similarity: str, expected: tuple[int | None, float | None], tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(f"image,caption,level,similarity\n0.png,a cat,{level},{similarity}\n")
    (sample,) = samples_of(tmp_path / "a.csv")
    assert (sample.level, sample.score) == expected


def test_a_whole_number_below_0_is_no_score(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption,similarity\n0.png,a cat,-1\n")
    with Rejects(tmp_path / "rejects.jsonl", max_share=1.0) as rejects:
        assert not samples_of(tmp_path / "a.csv", rejects)
    assert (
        "`similarity` must be a level 0…N-1, found -1" in json.loads((tmp_path / "rejects.jsonl").read_text())["detail"]
    )


@pytest.mark.parametrize(("level", "similarity"), [("3", "5"), ("0", ""), ("high", ""), ("2.5", ""), ("nan", "")])
def test_a_level_that_is_none_or_another_is_a_reject(level: str, similarity: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"id,image,caption,level,similarity\nx7,0.png,a cat,{level},{similarity}\n")
    with Rejects(tmp_path / "rejects.jsonl", max_share=1.0) as rejects:
        assert not samples_of(tmp_path / "a.csv", rejects)
    reject = json.loads((tmp_path / "rejects.jsonl").read_text())
    assert (reject["reason"], reject["id"]) == ("level", "x7") and "row 0 of a.csv: `level`" in reject["detail"]


@pytest.mark.parametrize("is_array", [False, True])
def test_file_names_are_read_whether_the_file_or_its_folder_is_named(is_array: bool, tmp_path: Path) -> None:
    rows = [{"file_name": f"{n}.png", "text": f"caption {n}", "similarity": n} for n in range(2)]
    text = json.dumps(rows) if is_array else "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metadata.jsonl").write_text(text)
    of_file, of_folder = samples_of(tmp_path / "metadata.jsonl"), samples_of(tmp_path)
    assert of_file == of_folder
    assert [(one.images, one.caption, one.level) for one in of_file] == [
        (("0.png",), "caption 0", 1),
        (("1.png",), "caption 1", 2),
    ]


def test_a_file_name_beside_what_is_read_changes_nothing(tmp_path: Path) -> None:
    record = {"image": "0.png", "file_name": "zero", "caption": "a cat", "text": "another"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    (sample,) = samples_of(tmp_path / "a.jsonl")
    assert (sample.images, sample.caption) == (("0.png",), "a cat")


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"text": "a caption", "conversations": TURNS}, "a cat"),
        ({"question": "what?", "answer": "a cat"}, "a cat"),
        ({"caption": "a cat", "text": "another"}, "a cat"),
    ],
)
def test_a_file_is_read_alike_compressed_and_by_scoring(fields: dict[str, Any], answer: str, tmp_path: Path) -> None:
    record = json.dumps({"image": "0.png", "file_name": "0.png"} | fields) + "\n"
    (tmp_path / "a.jsonl").write_text(record)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(record.encode()))
    for name in ("a.jsonl", "a.jsonl.gz"):
        (sample,) = samples_of(tmp_path / name)
        assert (sample.images, sample.turns[-1].text) == (("0.png",), answer)
        pairs = open_pairs(tmp_path / name)
        (pair,) = pairs.read(pairs.shards()[0])
        assert isinstance(pair, Pair) and pair.caption == answer


@pytest.mark.parametrize(("level", "expected"), [("easy", None), ("0", None), ("2.5", None), ("3", 3), ("3.0", 3)])
def test_the_difficulty_of_a_question_is_no_level(level: str, expected: int | None, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"image,question,answer,level\n0.png,what?,a cat,{level}\n")
    (sample,) = samples_of(tmp_path / "a.csv")
    assert (sample.turns[1].text, sample.level) == ("a cat", expected)


def test_a_level_of_a_question_that_contradicts_another_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,question,answer,level,similarity\n0.png,what?,a cat,3,5\n")
    rejects = Rejects(None, max_share=1.0)
    assert not samples_of(tmp_path / "a.csv", rejects) and rejects.by_reason == {"level": 1}


def test_a_record_that_is_no_row_says_why_the_file_is_a_table(tmp_path: Path) -> None:
    records = [
        {"file_name": "0.png", "text": "a cat"},
        {"image": "1.png", "conversations": TURNS},
        {"file_name": "", "text": "a dog"},
    ]
    (tmp_path / "a.json").write_text(json.dumps(records))
    with Rejects(tmp_path / "rejects.jsonl", max_share=1.0) as rejects:
        assert len(samples_of(tmp_path / "a.json", rejects)) == 1
    first, second = (json.loads(line)["detail"] for line in (tmp_path / "rejects.jsonl").read_text().splitlines())
    why = "there is no `file_name`, and the file is read as a table because its first record has one"
    assert first == f"record 1 of a.json: {why}"
    assert second == "record 2 of a.json: `file_name` is empty"
