"""Levels of the other score columns in a folder of `aligngpt score`: of further models, and derived scores."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligngpt.levels.making import make_levels, open_scores
from aligngpt.levels.page import prepare_look
from aligngpt.levels.scored_pairs import ScoredPairs
from aligngpt.scoring.manifest import read_manifest
from aligngpt.scoring.score_files import ScoresError, read_whole_part, write_part
from aligngpt.scoring.several_models import FurtherModel

COUNT = 8
OTHER = np.arange(COUNT, 0, -1, dtype=np.float32) / 16


@pytest.fixture
def source(write_pairs: Callable[..., Path]) -> Path:
    return write_pairs(COUNT)


@pytest.fixture
def scores(source: Path, write_scores: Callable[..., Path]) -> Path:
    """Scores that rise, `score_other` that falls, `negcliploss` below 0, and groups, in three shards."""
    out = write_scores(source, {number: number / 16 for number in range(COUNT)}, COUNT)
    start = 0
    for shard in range(3):
        part = read_whole_part(out, shard)
        some = OTHER[start : start + part.num_rows]
        for name, values in (("score_other", some), ("negcliploss", -some), ("duplicate_group", np.arange(len(some)))):
            array = pa.array(values)
            part = part.append_column(pa.field(name, array.type, nullable=False), array)
        write_part(out, shard, part, [])
        start += part.num_rows
    model = FurtherModel("score_other", "other/model", "b", {}, "float32")
    replace(read_manifest(out), more_models=(model,), auc=0.75).write(out)
    return out


def test_levels_follow_the_chosen_column(scores: Path, source: Path, tmp_path: Path) -> None:
    for column, order in ((None, 1), ("score", 1), ("score_other", -1), ("negcliploss", 1)):
        made = make_levels(scores, source=source, out=tmp_path / "out.jsonl", num_levels=4, score_column=column)
        records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [record["similarity"] for record in records] == [0, 0, 1, 1, 2, 2, 3, 3][::order]
        # The AUC is that of the first model's scores.
        assert any("75.0%" in note for note in made.notes) == (column in (None, "score"))


def test_the_report_shows_the_chosen_column_and_its_model(scores: Path, source: Path, tmp_path: Path) -> None:
    look = prepare_look(scores, tmp_path / "page.html", source=source, score_column="score_other")
    assert isinstance(look.table, ScoredPairs)
    look.write(make_levels(scores, num_levels=2, score_column="score_other"))
    page = (tmp_path / "page.html").read_text()
    assert "other/model" in page
    assert "shuffled" not in page


def test_columns_can_be_combined_into_a_table(scores: Path, tmp_path: Path) -> None:
    make_levels(scores, out=tmp_path / "out.parquet", num_levels=2, score_column={"score": 0.25, "score_other": 0.75})
    assert pq.read_table(tmp_path / "out.parquet")["level"].to_pylist() == [2] * 4 + [1] * 4


def test_combined_columns_have_a_page_beside_the_records(scores: Path, source: Path, tmp_path: Path) -> None:
    columns, out = {"score": 0.25, "score_other": 0.75}, tmp_path / "out.jsonl"
    look = prepare_look(scores, tmp_path / "page.html", source=source, score_column=columns, written=[out, None])
    look.write(make_levels(scores, source=source, out=out, num_levels=2, score_column=columns))
    assert "only shown for a single score column" in (tmp_path / "page.html").read_text()
    assert [json.loads(line)["similarity"] for line in out.read_text().splitlines()] == [1] * 4 + [0] * 4
    for options in ({"source": source}, {"source": source, "image_root": tmp_path, "written": [out]}):
        with pytest.raises(ScoresError, match="page of several score columns shows no images or captions; omit"):
            prepare_look(scores, tmp_path / "page.html", score_column=columns, **options)


def test_combined_columns_keep_the_remarks_about_their_folder(scores: Path, tmp_path: Path) -> None:
    replace(read_manifest(scores), auc=0.5, limit=COUNT).write(scores)
    out = tmp_path / "out.parquet"
    made = make_levels(scores, out=out, num_levels=2, score_column={"score": 0.25, "score_other": 0.75})
    assert any("(--limit)" in note for note in made.notes)
    assert any(note.startswith("column score: the scores tell your pairs from shuffled") for note in made.notes)
    made = make_levels(scores, out=out, num_levels=2, score_column={"negcliploss": 0.25, "score_other": 0.75})
    assert not any("shuffled" in note for note in made.notes)


@pytest.mark.parametrize("column", ["score_another", "duplicate_group", "shuffled", "width"])
def test_a_column_that_is_no_score_is_refused(column: str, scores: Path) -> None:
    expected = f"has no score column {column}; its score columns are: score, score_other, negcliploss"
    with pytest.raises(ScoresError, match=expected):
        open_scores(scores, column)


def test_a_part_that_was_scored_again_since_is_named(scores: Path) -> None:
    write_part(scores, 1, read_whole_part(scores, 1).drop_columns(["negcliploss"]), [])
    with pytest.raises(ScoresError, match=r"part-00001\.parquet has no score column negcliploss.*aligngpt derive"):
        open_scores(scores, "negcliploss")
