"""Scores in a field of JSON records: floats are scores, integers are levels, and a file must not mix them."""

import json
from pathlib import Path
from typing import Any

import pytest

from aligngpt.data.records.pairs import open_pairs
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.byte_ranges import BrokenLine
from aligngpt.levels import json_scores
from aligngpt.levels.json_scores import JsonScores, read_json
from aligngpt.scoring.score_files import ScoresError


def written(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_records_are_numbered_as_the_pairs_of_the_file_are(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    records = [{"id": str(index), "image": f"{index}.png", "caption": "c"} for index in range(4)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n \n{broken\r\n".join(map(json.dumps, records)).encode())
    found = list(read_json(path))
    assert [isinstance(record, BrokenLine) for record in found] == [False, True, False, True, False, True, False]
    assert found[::2] == records
    source = open_pairs(path, shard_size=100)
    assert [one.record for one in source.read(source.shards()[0])] == list(range(7))
    array = tmp_path / "data.json"
    array.write_text(json.dumps(records), encoding="utf-8")
    assert list(read_json(array)) == records
    array.write_text("[1, ", encoding="utf-8")
    with pytest.raises(SourceError, match="not a complete JSON array"):
        list(read_json(array))


def test_scores_ids_and_columns_of_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_scores, "RECORDS_AT_ONCE", 2)
    records = [{"score": 1, "uid": "a"}, {"uid": "b"}, {"score": 0.5, "n": 1}, [7], {"score": 2.5, "n": 1.5, "x": [1]}]
    table = JsonScores(written(tmp_path / "t.jsonl", records), "score")
    batches = list(table.batches(with_columns=True))
    assert [number for batch in batches for number in batch.numbers.tolist()] == [0, 2, 4]
    assert [id for batch in batches for id in batch.ids.to_pylist()] == ["a", "2", "4"]
    assert [score for batch in batches for score in batch.scores.tolist()] == [1.0, 0.5, 2.5]
    assert sum(batch.without for batch in batches) == 2
    assert set(table.schema.names) == {"score", "uid", "n", "x"}
    rows = [row for batch in batches if batch.columns is not None for row in batch.columns.to_pylist()]
    assert [row["n"] for row in rows] == [None, 1.0, 1.5]
    assert [row["x"] for row in rows] == [None, None, [1]]


def test_a_field_that_the_first_record_of_a_batch_lacks_is_a_column(tmp_path: Path) -> None:
    records = [{"score": 0.5}, {"score": 0.25, "license": "cc0"}, {"score": 0.75, "note": {"by": "x"}}]
    (batch,) = JsonScores(written(tmp_path / "t.jsonl", records), "score").batches(with_columns=True)
    assert batch.columns is not None
    empty = {"license": None, "note": None}
    assert batch.columns.to_pylist() == [empty | record for record in records]


def test_a_file_that_mixes_scores_and_levels_names_one_of_each(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", [{"similarity": value} for value in (0.5, None, 0.25, 3, 0.75)])
    with pytest.raises(ScoresError, match=r"record 0 has a decimal number \(a score\) and record 3 an integer"):
        list(JsonScores(path, "similarity").batches())


def test_levels_are_not_taken_for_scores(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", [{"similarity": value} for value in (0, 7, 3)])
    with pytest.raises(ScoresError, match="contains only integers, so these are levels"):
        list(JsonScores(path, "similarity").batches())


@pytest.mark.parametrize("value", ["0.5", True, [0.5]])
def test_a_score_that_is_no_number_names_its_record(value: object, tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", [{"score": 0.5}, {"score": value}])
    with pytest.raises(ScoresError, match=r"record 1 of .*t\.jsonl: `score` must be a number"):
        list(JsonScores(path, "score").batches())


def test_a_field_that_no_record_has_names_those_there_are(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", [{"id": 1, "text": "a"}, {"id": 2, "clip": 0.5}])
    with pytest.raises(ScoresError, match=r"no record .* field score; the fields are: id, text, clip; give"):
        list(JsonScores(path, "score").batches())


def test_records_that_make_no_table_say_what_to_do(tmp_path: Path) -> None:
    for records in ([{"score": 0.5, "a": 1}, {"score": 0.5, "a": "x"}], [{"score": 0.5, "a": "\ud83d"}]):
        table = JsonScores(written(tmp_path / "t.jsonl", records), "score")
        with pytest.raises(ScoresError, match=r"cannot be converted to a table .* write \.jsonl"):
            list(table.batches(with_columns=True))
