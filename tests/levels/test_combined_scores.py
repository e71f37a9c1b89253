"""Levels from several weighted score columns, and from ratings of each turn."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligngpt.levels.columns import lowest_rating, parse_columns
from aligngpt.levels.combined_scores import CombinedScores, mean_ranks
from aligngpt.levels.making import make_levels, open_scores
from aligngpt.levels.page import prepare_look
from aligngpt.scoring.manifest import Manifest
from aligngpt.scoring.score_files import Reject, ScoresError, part_table, write_part

CLIP = [0.30, 0.31, 0.32, 0.33]
RATING = [4, 1, 3, 2]
ROWS: list[dict[str, Any]] = [
    {"id": f"pair-{index}", "clip": clip, "rating": rating, "note": "x"}
    for index, (clip, rating) in enumerate(zip(CLIP, RATING, strict=True))
]
SUFFIXES = [".parquet", ".csv", ".json", ".jsonl"]


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    def make(suffix: str = ".parquet", rows: list[dict[str, Any]] = ROWS) -> Path:
        path = tmp_path / f"table{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif suffix == ".csv":
            lines = [",".join("" if cell is None else str(cell) for cell in row.values()) for row in rows]
            path.write_text("\n".join([",".join(rows[0]), *lines]) + "\n")
        else:
            path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
        return path

    return make


def scores_in(path: Path, columns: dict[str, float]) -> dict[str, float]:
    return {
        id: score
        for batch in open_scores(path, columns).batches()
        for id, score in zip(batch.ids.to_pylist(), batch.scores.tolist(), strict=True)
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_score_is_the_weighted_mean_of_ranks(suffix: str, table: Callable[..., Path]) -> None:
    # Ranks in (0, 1): clip 1/8, 3/8, 5/8, 7/8; rating 7/8, 1/8, 5/8, 3/8.
    expected = {"pair-0": 0.3125, "pair-1": 0.3125, "pair-2": 0.625, "pair-3": 0.75}
    assert scores_in(table(suffix), {"clip": 3.0, "rating": 1.0}) == pytest.approx(expected)


def test_the_scale_of_a_column_does_not_count(table: Callable[..., Path]) -> None:
    stretched = [row | {"rating": math.exp(10 * row["rating"])} for row in ROWS]
    weights = {"clip": 0.5, "rating": 0.5}
    assert scores_in(table(rows=stretched), weights) == scores_in(table(), weights)


def test_a_negative_weight_turns_a_column_round(table: Callable[..., Path]) -> None:
    turned = [row | {"rating": -row["rating"]} for row in ROWS]
    assert scores_in(table(rows=turned), {"clip": 0.5, "rating": -0.5}) == scores_in(
        table(rows=ROWS), {"clip": 0.5, "rating": 0.5}
    )


def test_equal_values_share_their_mean_rank() -> None:
    assert mean_ranks(np.array([5.0, 1, 5, 9])).tolist() == [0.5, 0.125, 0.5, 0.875]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_row_that_lacks_a_column_has_no_level_and_is_told(
    suffix: str, table: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [*ROWS[:2], ROWS[2] | {"rating": None}, ROWS[3] | {"clip": None}, ROWS[2] | {"id": "last"}]
    out = tmp_path / ("out.jsonl" if suffix.startswith(".json") else "out.parquet")
    made = make_levels(table(suffix, rows), out=out, num_levels=2, score_column={"clip": 0.5, "rating": 0.4})
    assert made.without == 2 and int(made.counts.sum()) == 3
    assert any(
        "lack a score in a column have no level; without a score: clip 1, rating 1" in note for note in made.notes
    )
    assert any("weighted clip 56%, rating 44%" in note for note in made.notes)
    written = (
        [json.loads(line) for line in out.read_text().splitlines()]
        if out.suffix == ".jsonl"
        else pq.read_table(out).to_pylist()
    )
    assert [row["id"] for row in written] == ["pair-0", "pair-1", "last"]
    assert all(row["note"] == "x" for row in written), "the other columns are those of the same row"


def test_no_row_with_all_columns_is_an_error(table: Callable[..., Path]) -> None:
    rows = [ROWS[0] | {"clip": None}, ROWS[1] | {"rating": None}]
    with pytest.raises(ScoresError, match=r"no row has a score in all of the columns \(clip in 1, rating in 1 rows\)"):
        scores_in(table(".jsonl", rows), {"clip": 1, "rating": 1})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_unknown_column_comes_with_near_names(suffix: str, table: Callable[..., Path]) -> None:
    with pytest.raises(ScoresError, match=r"Ratings \(did you mean rating\?\)"):
        scores_in(table(suffix), {"clip": 0.5, "Ratings": 0.5})


def test_borders_of_other_scores_are_refused(table: Callable[..., Path], tmp_path: Path) -> None:
    first = make_levels(table(), out=tmp_path / "a.parquet", num_levels=2, score_column="clip")
    with pytest.raises(ScoresError, match="omit --borders"):
        make_levels(
            table(), out=tmp_path / "b.parquet", borders=first.borders, score_column={"clip": 0.5, "rating": 0.5}
        )


def test_several_columns_have_a_page(table: Callable[..., Path], tmp_path: Path) -> None:
    columns, out, page = {"clip": 0.5, "rating": 0.5}, tmp_path / "a.jsonl", tmp_path / "page.html"
    look = prepare_look(table(".jsonl"), page, score_column=columns, source=table(".jsonl"), written=(out,))
    look.write(make_levels(table(".jsonl"), out=out, num_levels=2, score_column=columns))
    assert "<html" in page.read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a", "b"], r"need a weight each, as in --score-column a=0\.5; found --score-column a$"),
        (["a=1", "=2"], "found --score-column =2"),
        (["a=1", "b=x"], "weight of the score column b must be a number other than 0.*found 'x'"),
        (["a=1", "b=0"], "found '0'"),
        (["a=1", "b=nan"], "found 'nan'"),
        (["a=1", "b=inf"], "found 'inf'"),
        (["a=1", "b="], "found ''"),
        (["a=1", "a=2"], "a is given twice"),
        (["a=1e308", "b=1e308"], "too large to add up"),
    ],
)
def test_bad_weights_are_a_sentence(given: list[str], said: str) -> None:
    with pytest.raises(ScoresError, match=said):
        parse_columns(given)


def test_columns_are_parsed() -> None:
    assert parse_columns([]) is None
    assert parse_columns(["a=b"]) == "a=b", "one column has no weight"
    assert parse_columns(["a=b=0.7", "c=-3e-1"]) == {"a=b": 0.7, "c": -0.3}


def test_one_weighted_column_is_refused(table: Callable[..., Path]) -> None:
    with pytest.raises(ScoresError, match="two or more score columns, found 1"):
        open_scores(table(), {"clip": 1.0})


def test_the_combined_scores_are_the_same_at_each_reading(table: Callable[..., Path]) -> None:
    combined = open_scores(table(), {"clip": 0.7, "rating": 0.3})
    assert isinstance(combined, CombinedScores)
    first, second = ([batch.scores.tolist() for batch in combined.batches()] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_ratings_of_turns_count_by_the_lowest(suffix: str, table: Callable[..., Path]) -> None:
    ratings = [[5, 3, 4], [2], [5, None], []]
    rows = [{"id": str(at), "relevance_ratings": some, "relevance_min": 3} for at, some in enumerate(ratings)]
    (batch,) = open_scores(table(suffix, rows), "relevance_ratings").batches()
    assert (batch.ids.to_pylist(), batch.scores.tolist(), batch.without) == (["0", "1"], [3.0, 2.0], 2)
    (batch,) = open_scores(table(suffix, rows), "relevance_min").batches()
    assert batch.scores.tolist() == [3.0] * 4


def test_a_list_of_texts_is_no_score(table: Callable[..., Path]) -> None:
    with pytest.raises(ScoresError, match="expected numbers or lists of them"):
        open_scores(table(rows=[{"score": ["a"]}]))
    with pytest.raises(ScoresError, match="must be a number or a list of numbers, found"):
        list(open_scores(table(".jsonl", [{"score": ["a"]}])).batches())


def test_lists_among_numbers_are_refused(table: Callable[..., Path]) -> None:
    with pytest.raises(ScoresError, match=r"record 1 of .*must be a list, as in record 0"):
        list(open_scores(table(".jsonl", [{"score": [3]}, {"score": 3}])).batches())


def test_a_missing_rating_may_be_the_lowest() -> None:
    assert lowest_rating([4, 2.5]) == 2.5
    assert all(math.isnan(lowest_rating(ratings)) for ratings in (None, [], [4, None], [4, math.nan]))


def test_score_columns_of_a_scored_folder_are_combined(tmp_path: Path) -> None:
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps({"id": f"id-{at}"}) + "\n" for at in range(4)))
    folder = tmp_path / "scores"
    rows = part_table(
        record=[0, 1, 3],
        id=["id-0", "id-1", "id-3"],
        score=np.array([0.1, 0.2, 0.3], np.float32),
        caption_tokens=[3] * 3,
        size=[(4, 4)] * 3,
        image_hash=["00"] * 3,
        more={"score_other": np.array([9, 7, 8], np.float32)},
    )
    folder.mkdir()
    total = write_part(folder, 0, rows, [Reject(2, "id-2", "missing", "gone")])
    Manifest(
        source={"kind": "llava", "fingerprint": hashlib.sha256(source.read_bytes()).hexdigest()},
        shards=1,
        cut="",
        model="model",
        model_fingerprint="",
        preprocessing={},
        dtype="float32",
        batch_size=4,
        embeddings=False,
        finished=total,
    ).write(folder)
    out = tmp_path / "out.jsonl"
    columns = {"score": 1.0, "score_other": 3.0}
    made = make_levels(folder, source=source, out=out, num_levels=3, score_column=columns)
    levels = {row["id"]: row["similarity"] for row in map(json.loads, out.read_text().splitlines())}
    assert levels == {"id-0": 2, "id-1": 0, "id-3": 1}
    assert made.borders == tmp_path / "out.borders.json"
    alone = make_levels(folder, source=source, out=out, num_levels=3, score_column="score_other")
    assert alone.borders == folder / "levels-score_other.json", "the borders of `score` are in levels.json"
    with pytest.raises(ScoresError, match=r"no score column score_othr; .*\(did you mean score_other"):
        open_scores(folder, {"score": 1.0, "score_othr": 1.0})
