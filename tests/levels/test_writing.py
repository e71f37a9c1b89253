"""The output files of levels."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from aligngpt.levels.score_tables import ScoreBatch
from aligngpt.levels.writing import UID, parse_levels, records_writer, uids_writer
from aligngpt.scoring.score_files import ScoresError


def batch(ids: list[str]) -> ScoreBatch:
    return ScoreBatch(np.arange(len(ids)), pa.array(ids, pa.string()), np.zeros(len(ids)), None, 0)


@pytest.mark.parametrize(
    ("text", "levels"), [("5-8", {5, 6, 7, 8}), ("8", {8}), ("1, 3,7 - 8", {1, 3, 7, 8}), ("2,2-2", {2})]
)
def test_levels_are_named_as_people_write_them(text: str, levels: set[int]) -> None:
    assert parse_levels(text, 8) == levels


@pytest.mark.parametrize("text", ["", "0", "9", "5-9", "6-5", "a", "-3", "1,", "1.5"])
def test_levels_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(ScoresError, match="expected levels from 1 to 8, such as 2-8 or 1,2, found"):
        parse_levels(text, 8)


def test_uids_are_two_numbers_each_and_sorted(tmp_path: Path) -> None:
    ids = ["f" * 32, "0" * 31 + "A", "8" + "0" * 31, "0" * 32, "0" * 15 + "1" + "f" * 16]
    with uids_writer(tmp_path / "uids.npy", {2}) as writer:
        writer.write(batch(ids[:3]), np.array([2, 2, 1]))
        writer.write(batch([]), np.array([], dtype=np.int64))
        writer.write(batch(ids[3:]), np.array([2, 2]))
    found = np.load(tmp_path / "uids.npy")
    assert found.dtype == UID == np.dtype("u8,u8")
    # As written by DataComp's own tools.
    kept = [id for id in ids if not id.startswith("8")]
    expected = np.array([(int(id[:16], 16), int(id[16:], 16)) for id in kept], np.dtype("u8,u8"))
    assert found.tolist() == np.sort(expected).tolist()


@pytest.mark.parametrize("wrong", ["12", "g" * 32, "0" * 31 + "\n", "0" * 33, ""])
def test_ids_that_are_no_uids_are_refused_and_nothing_is_written(wrong: str, tmp_path: Path) -> None:
    with (
        pytest.raises(ScoresError, match=r"is not 32 hexadecimal digits.* write uids\.txt"),
        uids_writer(tmp_path / "uids.npy", {1}) as writer,
    ):
        writer.write(batch(["0" * 32, wrong]), np.array([1, 1]))
    assert list(tmp_path.iterdir()) == []


def test_any_id_can_be_a_line(tmp_path: Path) -> None:
    with uids_writer(tmp_path / "uids.txt", {1, 3}) as writer:
        writer.write(batch(["b", "größe", "a", "c"]), np.array([1, 3, 2, 1]))
    assert (tmp_path / "uids.txt").read_text(encoding="utf-8") == "b\ngröße\nc\n"


@pytest.mark.parametrize(("name", "content"), [("out.json", "[\n]\n"), ("out.jsonl", "")])
def test_no_record_at_all_is_a_whole_file(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"id": 1}\n')
    with records_writer(tmp_path / name, tmp_path / "data.jsonl"):
        pass
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize("numbers", ["good,", "3,5", "2,1"])
def test_the_level_that_a_row_has_is_replaced_whatever_it_is(numbers: str, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(f"image,caption,level,similarity\na.png,a cat,{numbers}\n")
    with records_writer(tmp_path / "out.jsonl", tmp_path / "data.csv") as writer:
        writer.write(batch(["0"]), np.array([4]))
    expected = {"image": "a.png", "caption": "a cat", "similarity": 3, "score": 0.0}
    assert json.loads((tmp_path / "out.jsonl").read_text()) == expected


@pytest.mark.parametrize(("level", "kept"), [("easy", {"level": "easy"}), ("3", {})])
def test_the_difficulty_of_a_question_is_kept(level: str, kept: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(f"image,question,answer,level,similarity\na.png,what?,a cat,{level},5\n")
    with records_writer(tmp_path / "out.jsonl", tmp_path / "data.csv") as writer:
        writer.write(batch(["0"]), np.array([4]))
    expected = {"image": "a.png", "question": "what?", "answer": "a cat", "similarity": 3, "score": 0.0}
    assert json.loads((tmp_path / "out.jsonl").read_text()) == expected | kept


def test_a_record_that_is_gone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"id": 1}\n')
    with (
        pytest.raises(ScoresError, match="no longer has a record 1"),
        records_writer(tmp_path / "out.json", tmp_path / "data.jsonl") as writer,
    ):
        writer.write(batch(["a", "b"]), np.array([1, 1]))
    assert not (tmp_path / "out.json").exists()
