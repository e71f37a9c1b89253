"""Score columns of tables separated by tabs or semicolons."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from aligngpt.levels.making import make_levels, open_scores
from aligngpt.scoring.score_files import ScoresError


@pytest.mark.parametrize(("name", "between"), [("a.tsv", "\t"), ("a.csv", ";"), ("a.csv", "\t")])
def test_the_delimiter_is_found_from_the_score_column(name: str, between: str, tmp_path: Path) -> None:
    rows = [("id", "clip, score"), *((f"r{number}", f"0.{number}") for number in range(1, 9)), ("r9", "None")]
    (tmp_path / name).write_text("".join(between.join(row) + "\n" for row in rows))
    made = make_levels(tmp_path / name, out=tmp_path / "l.parquet", num_levels=2, score_column="clip, score")
    assert (made.counts.tolist(), made.without) == ([4, 4], 1)
    assert pq.read_table(tmp_path / "l.parquet")["id"].to_pylist() == [f"r{number}" for number in range(1, 9)]


def test_a_missing_column_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("id\tother\n1\t2\n")
    with pytest.raises(ScoresError, match="no column score; the columns are: id, other"):
        open_scores(tmp_path / "a.tsv")
