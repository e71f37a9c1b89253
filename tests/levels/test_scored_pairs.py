"""A score folder read as a table."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aligngpt.levels.scored_pairs import ScoredPairs
from aligngpt.scoring.score_files import ScoresError, part_path


def test_rows_have_the_numbers_of_their_records_in_the_source(
    write_scores: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "data.jsonl").touch()
    table = ScoredPairs(write_scores(tmp_path / "data.jsonl", {1: 0.5, 3: 0.25, 7: 0.75}, 10))
    batches = list(table.batches())
    assert table.rows == 3
    assert [number for batch in batches for number in batch.numbers.tolist()] == [1, 3, 7]
    assert [id for batch in batches for id in batch.ids.to_pylist()] == ["id-1", "id-3", "id-7"]
    assert [score for batch in batches for score in batch.scores.tolist()] == [0.5, 0.25, 0.75]


def test_a_part_that_is_gone_is_an_error_that_says_what_to_do(
    write_scores: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "data.jsonl").touch()
    folder = write_scores(tmp_path / "data.jsonl", {1: 0.5}, 10)
    part_path(folder, 2).unlink()
    with pytest.raises(ScoresError, match=r"part-00002\.parquet .* run the same `aligngpt score` again"):
        ScoredPairs(folder)
