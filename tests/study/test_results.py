"""The result files of a study: one per run, all in one, and each taken out of that one again."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligngpt.study.pairs import StudyError
from aligngpt.study.results import merge_files, read_rows, settings_in, take_over, write_row


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A pre-training, a run without and a run with a column of its own."""
    folder = tmp_path / "results"
    write_row(folder / "plain.parquet", {"run": "plain", "answers": None, "losses": np.arange(3.0)})
    write_row(folder / "a.parquet", {"run": "a", "answers": 500, "right": np.array([True, False])})
    write_row(folder / "b.parquet", {"run": "b", "answers": None, "right": np.array([True]), "gate": "{}"})
    out = tmp_path / "results.parquet"
    merge_files(sorted(folder.glob("*.parquet")), out, {"seed": 1})
    return out


def test_rows_taken_over_are_those_that_were_merged(merged: Path, tmp_path: Path) -> None:
    assert take_over(merged, tmp_path / "elsewhere") == 3
    rows, expected = read_rows(tmp_path / "elsewhere"), read_rows(tmp_path / "results")
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        assert all(np.array_equal(row[name], other[name]) for name in row)


def test_files_that_macos_adds_are_no_results(merged: Path, tmp_path: Path) -> None:
    (tmp_path / "results" / "._a.parquet").write_bytes(b"\x00\x05\x16\x07")
    assert [row["run"] for row in read_rows(tmp_path / "results")] == ["a", "b", "plain"]


def test_a_run_done_here_keeps_its_file(merged: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    write_row(here / "a.parquet", {"run": "a", "answers": 500, "right": np.array([False])})
    assert take_over(merged, here) == 2
    assert read_rows(here / "a.parquet")[0]["right"].tolist() == [False]


def test_results_in_half_and_in_single_precision_are_merged(tmp_path: Path) -> None:
    """What earlier versions kept in half precision is merged with what later ones keep in single precision."""
    values = np.array([-40.25, -0.5])
    write_row(tmp_path / "old.parquet", {"run": "old", "captions": values.astype(np.float16), "answers": values})
    write_row(tmp_path / "new.parquet", {"run": "new", "captions": values.astype(np.float32) + 1})
    write_row(tmp_path / "half.parquet", {"run": "half", "right": values.astype(np.float16)})
    merge_files([tmp_path / f"{name}.parquet" for name in ("old", "new", "half")], tmp_path / "all.parquet", {})
    rows = {row["run"]: row for row in read_rows(tmp_path / "all.parquet")}
    assert rows["old"]["captions"].tolist() == values.tolist() and rows["half"]["captions"] is None
    assert rows["new"]["captions"].tolist() == (values + 1).tolist()
    assert rows["half"]["right"].dtype == np.float16


def test_the_settings_are_kept(merged: Path, tmp_path: Path) -> None:
    assert settings_in(merged) == {"seed": 1}
    pq.write_table(pa.table({"run": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(StudyError, match=r"other\.parquet is not a results\.parquet"):
        settings_in(tmp_path / "other.parquet")
