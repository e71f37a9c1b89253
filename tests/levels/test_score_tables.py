"""Scores from foreign tables: rows with and without a score, their ids, and columns that are not scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligngpt.levels.score_tables import CsvScores, ParquetScores, ScoreBatch, ScoreTable
from aligngpt.scoring.score_files import ScoresError


def together(table: ScoreTable, **options: Any) -> ScoreBatch:
    """All the rows of a table as one batch."""
    batches = list(table.batches(**options))
    columns = [batch.columns for batch in batches if batch.columns is not None]
    return ScoreBatch(
        np.concatenate([batch.numbers for batch in batches]),
        pa.concat_arrays([batch.ids for batch in batches]),
        np.concatenate([batch.scores for batch in batches]),
        pa.concat_batches(columns) if columns else None,
        sum(batch.without for batch in batches),
    )


def parquet(path: Path, **columns: Any) -> ParquetScores:
    pq.write_table(pa.table(columns), path)
    return ParquetScores(path, [path], "score")


def test_rows_without_a_score_are_counted_and_left_out(tmp_path: Path) -> None:
    table = parquet(tmp_path / "t.parquet", score=[0.5, None, float("nan"), float("-inf"), 0.25], uid=list("abcde"))
    found = together(table, with_columns=True)
    assert found.numbers.tolist() == [0, 4]
    assert found.ids.to_pylist() == ["a", "e"]
    assert found.scores.tolist() == [0.5, 0.25]
    assert found.columns is not None and found.columns["uid"].to_pylist() == ["a", "e"]
    assert (table.rows, found.without) == (5, 3)


def test_numbers_stand_in_for_ids_that_are_not_there(tmp_path: Path) -> None:
    assert together(parquet(tmp_path / "a.parquet", score=[1.0, 2.0])).ids.to_pylist() == ["0", "1"]
    found = together(parquet(tmp_path / "b.parquet", score=[1.0, 2.0, 3.0], key=[7, None, 9]))
    assert found.ids.to_pylist() == ["7", "1", "9"]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64(), pa.int32(), pa.decimal128(5, 2)])
def test_any_kind_of_number_is_a_score(kind: pa.DataType, tmp_path: Path) -> None:
    table = parquet(tmp_path / "t.parquet", score=pa.array([1, 2]).cast(pa.float32()).cast(kind))
    assert together(table).scores.tolist() == [1.0, 2.0]


def test_only_the_columns_that_are_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = parquet(tmp_path / "t.parquet", score=[1.0, 2.0], uid=["a", "b"], text=["long", "text"])
    asked: list[Any] = []
    read = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda file, columns: asked.append(columns) or read(file, columns=columns)
    )
    together(table)
    together(table, with_columns=True)
    assert asked == [["score", "uid"], None]


def test_columns_that_do_not_hold_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match=r"column score of .* has type string, expected numbers"):
        parquet(tmp_path / "t.parquet", score=["0.5"])
    pq.write_table(pa.table({"similarity": [0, 7]}), tmp_path / "levels.parquet")
    with pytest.raises(ScoresError, match="contains only integers, so these are levels"):
        ParquetScores(tmp_path, [tmp_path / "levels.parquet"], "similarity")


def test_files_of_one_table_must_have_the_same_columns(tmp_path: Path) -> None:
    files = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    pq.write_table(pa.table({"score": [1.0], "n": pa.array([1], pa.int32())}), files[0])
    pq.write_table(pa.table({"n": [2], "score": pa.array([2.0], pa.float32())}), files[1])
    found = together(ParquetScores(tmp_path, files, "score"), with_columns=True)
    assert found.numbers.tolist() == [0, 1]
    assert found.columns is not None and found.columns["n"].to_pylist() == [1, 2]
    pq.write_table(pa.table({"score": [2.0]}), files[1])
    with pytest.raises(ScoresError, match=r"1\.parquet has no column n, but the first file"):
        together(ParquetScores(tmp_path, files, "score"), with_columns=True)
    pq.write_table(pa.table({"n": ["x"], "score": [2.0]}), files[1])
    with pytest.raises(ScoresError, match=r"1\.parquet cannot be read"):
        together(ParquetScores(tmp_path, files, "score"), with_columns=True)
    files[1].write_bytes(files[0].read_bytes()[:50])
    with pytest.raises(ScoresError, match=r"1\.parquet cannot be read"):
        ParquetScores(tmp_path, files, "score")


def test_a_csv_file_gives_its_texts_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('\ufeffuid,score,text\n007,0.5,"a, b\nc"\n008,,d\n009,0.25,\n', encoding="utf-8")
    found = together(CsvScores(path, "score"), with_columns=True)
    assert found.ids.to_pylist() == ["007", "009"]
    assert found.scores.tolist() == [0.5, 0.25]
    assert found.columns is not None and found.columns["text"].to_pylist() == ["a, b\nc", ""]
    assert (found.numbers.tolist(), found.without) == ([0, 2], 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column score; the columns are: none"),
        ("a,b\n1,2\n", "no column score; the columns are: a, b; give"),
        ("score,a,a\n1,2,3\n", "several columns with the same name"),
        ("score,a\n0.5,x\nhigh,y\n", "cannot be read: .*high"),
        ("score,a\n0.5,x,y\n", "cannot be read: .*3"),
    ],
)
def test_a_csv_file_that_is_no_table_of_scores_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ScoresError, match=message):
        together(CsvScores(tmp_path / "t.csv", "score"))


@pytest.mark.parametrize(
    ("text", "ids", "first_broken"),
    [
        ('1,"abc,0.1\n2,def,0.6\n3,ghi,0.2\n4,"x",0.7\n5,y,0.3\n', ["2", "3", "4", "5"], "row 0, at byte 15: a quote"),
        ('1,a,0.1\n2,"abc,0.6\n3,d",0.2\n4,x,0.7\n', ["1", "3", "4"], "row 1, at byte 23: a quote"),
        ('1,"a,0.1\n2,"b,0.6\n3,x,0.7\n4,y,0.2\n', ["3", "4"], "row 0, at byte 15: a quote"),
    ],
)
def test_an_unclosed_quote_costs_only_its_own_row(text: str, ids: list[str], first_broken: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,title,score\n" + text, encoding="utf-8")
    scores = {row[0]: float(row.rpartition(",")[2]) for row in text.splitlines()}
    table = CsvScores(path, "score")
    found = together(table)
    assert dict(zip(found.ids.to_pylist(), found.scores.tolist(), strict=True)) == {id: scores[id] for id in ids}
    broken = len(scores) - len(ids)
    assert found.without == broken
    (remark,) = table.remarks
    assert f"no level: {broken}; the first is {first_broken}" in remark


def test_levels_in_a_csv_file_are_not_taken_for_scores(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,similarity\na,0\nb,\nc,7\n", encoding="utf-8")
    with pytest.raises(ScoresError, match="contains only integers, so these are levels"):
        together(CsvScores(path, "similarity"))
    path.write_text("id,similarity\na,0\nb,0.5\n", encoding="utf-8")
    assert together(CsvScores(path, "similarity")).scores.tolist() == [0.0, 0.5]
