"""Levels of a score folder or table, written into data: in the authors' format, with everything else unchanged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligngpt.alignment import sketch
from aligngpt.alignment.levels import AlignmentLevels, LevelsError, fit_levels
from aligngpt.data.records.pairs import open_pairs
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import read_samples
from aligngpt.data.sources.base import SourceError
from aligngpt.levels.making import LEVELS, make_levels, open_scores
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source
from aligngpt.scoring.manifest import MANIFEST
from aligngpt.scoring.score_files import ScoresError, part_path, read_whole_part, rejects_path, write_part

# Representable in half precision, so they are the same numbers in every precision.
VALUES = [0.3125, 0.125, 0.25, 0.125, 0.0625, 0.4375, 0.28125, 0.1875]
NUMBERS = [0, 1, 2, 3, 5, 6, 7, 8]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eight pairs with fields of all kinds, and a record that is not a pair."""
    path = tmp_path / "data.jsonl"
    records: list[dict[str, Any]] = [
        {"image": f"{index}.png", "caption": f"größe {index}", "extra": {"nested": [index, None]}, "id": index}
        for index in range(len(VALUES))
    ]
    records[2]["similarity"] = 99
    records[3] = {
        "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "that \ud83d"}],
        "image": "3.png",
        "id": "three",
    }
    records.insert(4, {"id": "no pair", "caption": "without image"})
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def scores(source: Path, write_scores: Callable[..., Path]) -> Path:
    return write_scores(source, dict(zip(NUMBERS, VALUES, strict=True)), 9)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eight rows with DataComp's columns, in two files."""
    folder = tmp_path / "metadata"
    folder.mkdir()
    uids = [f"{7 - index:016x}{index:016x}" for index in range(8)]
    rows = pa.table({"uid": uids, "clip_l14_similarity_score": pa.array(VALUES, pa.float32()), "url": list("abcdefgh")})
    pq.write_table(rows[:5], folder / "0.parquet")
    pq.write_table(rows[5:], folder / "1.parquet")
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_levels_and_scores_are_written_and_nothing_else_changes(source: Path, scores: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    make_levels(scores, source=source, out=tmp_path / "out.jsonl", num_levels=4)
    records, written = lines(source), lines(tmp_path / "out.jsonl")
    # In order: 0.0625 0.125 0.125 | 0.1875 | 0.25 0.28125 | 0.3125 0.4375; the two 0.125 are not split.
    assert [record["score"] for record in written] == VALUES
    levels = [record["similarity"] for record in written]
    assert levels == [3, 0, 2, 0, 0, 3, 2, 1]
    del records[4]
    for record, found in zip(records, written, strict=True):
        added = {"similarity": found["similarity"], "score": found["score"]}
        assert found == record | added
        assert [name for name in found if name not in added] == [name for name in record if name not in added]
    assert source.read_bytes() == before


def test_the_written_levels_are_read_back_as_one_to_n(scores: Path, source: Path, tmp_path: Path) -> None:
    made = make_levels(scores, source=source, out=tmp_path / "out.jsonl", num_levels=4)
    (tmp_path / "out.jsonl").write_text((tmp_path / "out.jsonl").read_text().replace("\\ud83d", ""))
    rejects = Rejects(None)
    samples = [sample for sample, _ in read_samples(tmp_path / "out.jsonl", rejects)]
    assert rejects.count == 0
    assert [sample.level for sample in samples] == made.levels.assign(VALUES).tolist()
    assert [sample.score for sample in samples] == VALUES


def test_counts_sum_up_to_the_scored_pairs(source: Path, scores: Path, tmp_path: Path) -> None:
    made = make_levels(scores, source=source, out=tmp_path / "out.jsonl", num_levels=4)
    assert made.levels.num_levels == 4
    assert made.counts.tolist() == [3, 1, 2, 2]
    written = [record["similarity"] for record in lines(tmp_path / "out.jsonl")]
    assert [written.count(level) for level in range(4)] == made.counts.tolist()
    assert make_levels(scores, num_levels=4).counts.tolist() == [3, 1, 2, 2]


def test_width_cuts_the_range_and_quantile_the_order(scores: Path) -> None:
    by_width = make_levels(scores, num_levels=3, method="width")
    assert by_width.levels.method == "width"
    assert by_width.levels.borders == pytest.approx([0.1875, 0.3125])
    assert by_width.counts.sum() == 8
    by_order = make_levels(scores, num_levels=2)
    assert by_order.levels.borders == pytest.approx([0.21875])
    assert by_order.counts.tolist() == [4, 4]


def test_the_levels_are_kept_with_the_scores(scores: Path) -> None:
    made = make_levels(scores, num_levels=4)
    assert made.borders == scores / LEVELS
    assert AlignmentLevels.load(made.borders) == made.levels == fit_levels(VALUES, 4)


def test_the_levels_of_a_table_are_kept_beside_what_is_written(table: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in table.iterdir()}
    out = tmp_path / "elsewhere" / "levels.parquet"
    made = make_levels(table, out=out, num_levels=4, score_column="clip_l14_similarity_score")
    assert made.borders == out.with_name("levels.borders.json")
    assert AlignmentLevels.load(made.borders) == made.levels == fit_levels(VALUES, 4)
    assert {path: path.read_bytes() for path in table.iterdir()} == before


def test_the_borders_of_other_scores_are_taken_as_they_are(source: Path, scores: Path, tmp_path: Path) -> None:
    fit_levels([0.0, 0.2, 0.26, 0.4, 0.9], 5).save(tmp_path / "other.json")
    other, out = AlignmentLevels.load(tmp_path / "other.json"), tmp_path / "out.jsonl"
    made = make_levels(scores, source=source, out=out, borders=tmp_path / "other.json")
    assert made.levels == other == AlignmentLevels.load(scores / LEVELS)
    assert made.counts.tolist() == [1, 3, 3, 1, 0]
    assert [record["similarity"] + 1 for record in lines(out)] == other.assign(VALUES).tolist()


def test_no_borders_or_too_few_scores_are_an_error(source: Path, scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(LevelsError, match="is not a levels file"):
        make_levels(scores, source=source, out=out, borders=source)
    with pytest.raises(LevelsError, match="too few for 8 levels"):
        make_levels(scores, source=source, out=out)
    assert not out.exists()
    assert not (scores / LEVELS).exists()


def test_a_name_in_json_makes_an_array_and_an_array_is_read_as_well(
    source: Path, scores: Path, write_scores: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("out.json", "out.jsonl"):
        make_levels(scores, source=source, out=tmp_path / name, num_levels=4)
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == lines(tmp_path / "out.jsonl")
    array = tmp_path / "data.json"
    array.write_text(json.dumps(lines(source)), encoding="utf-8")
    make_levels(write_scores(array, {0: 0.1, 8: 0.9}, 9, "few"), source=array, out=tmp_path / "few.jsonl", num_levels=2)
    assert [(record["id"], record["similarity"]) for record in lines(tmp_path / "few.jsonl")] == [(0, 0), (7, 1)]


def test_a_folder_of_scores_makes_a_table(scores: Path, tmp_path: Path) -> None:
    make_levels(scores, out=tmp_path / "out.parquet", num_levels=4)
    rows = pq.read_table(tmp_path / "out.parquet")
    assert rows.column_names == ["id", "score", "level", "record"]
    assert rows["record"].to_pylist() == NUMBERS
    assert rows["id"].to_pylist() == [f"id-{number}" for number in NUMBERS]
    assert rows["score"].to_pylist() == VALUES
    assert rows["level"].to_pylist() == [4, 1, 3, 1, 1, 4, 3, 2]


def test_files_that_macos_adds_are_no_part_of_a_table(table: Path) -> None:
    (table / "._0.parquet").write_bytes(b"\x00\x05\x16\x07")
    assert open_scores(table, column="clip_l14_similarity_score").rows == len(VALUES)


def test_a_table_keeps_all_its_columns(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    made = make_levels(table, out=out, num_levels=4, score_column="clip_l14_similarity_score")
    rows = pq.read_table(out)
    assert rows.column_names == ["id", "score", "level", "uid", "clip_l14_similarity_score", "url"]
    assert rows["id"].to_pylist() == rows["uid"].to_pylist() == [f"{7 - i:016x}{i:016x}" for i in range(8)]
    assert rows["level"].to_pylist() == made.levels.assign(VALUES).tolist()
    assert rows["url"].to_pylist() == list("abcdefgh")
    # The output is itself a score table and can be given new levels.
    make_levels(out, out=tmp_path / "again.parquet", num_levels=2)
    again = pq.read_table(tmp_path / "again.parquet")
    assert again.column_names == rows.column_names
    assert set(again["level"].to_pylist()) == {1, 2}


def test_the_ids_of_chosen_levels_are_written(table: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_levels": 4, "score_column": "clip_l14_similarity_score", "keep": "3-4"}
    made = make_levels(table, uids=tmp_path / "uids.npy", **options)
    assert made.borders == tmp_path / "uids.borders.json"
    found = np.load(tmp_path / "uids.npy")
    assert found.tolist() == [(1, 6), (2, 5), (5, 2), (7, 0)]
    make_levels(table, uids=tmp_path / "uids.txt", **options)
    kept = (tmp_path / "uids.txt").read_text().splitlines()
    assert kept == [f"{7 - index:016x}{index:016x}" for index in (0, 2, 5, 6)]


def test_a_json_file_with_scores_gets_its_own_levels(source: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "scored.json", tmp_path / "out.json"
    records = [{"id": index, "similarity": value} for index, value in enumerate(VALUES)]
    data.write_text(json.dumps([*records[:3], {"id": "none"}, *records[3:]]), encoding="utf-8")
    made = make_levels(data, out=out, num_levels=4, score_column="similarity")
    assert made.without == 1
    written = json.loads(out.read_text(encoding="utf-8"))
    assert [record["score"] for record in written] == VALUES
    assert [record["similarity"] for record in written] == [3, 0, 2, 0, 0, 3, 2, 1]
    with pytest.raises(ScoresError, match="omit --source"):
        make_levels(data, source=source, out=out, num_levels=4, score_column="similarity")


def test_more_scores_than_fit_are_sketched(
    source: Path, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = make_levels(scores, num_levels=4)
    monkeypatch.setattr(sketch, "EXACT_SCORES", 3)
    made = make_levels(scores, source=source, out=tmp_path / "out.jsonl", num_levels=4)
    # Few enough that the sketch still contains every score.
    assert made.levels.borders == exact.levels.borders
    assert made.counts.tolist() == exact.counts.tolist()
    assert json.loads((scores / LEVELS).read_text())["rank_error"] == made.levels.rank_error > 0


def test_unfinished_damaged_and_missing_scores_are_refused(source: Path, scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    manifest = (scores / MANIFEST).read_text()
    (scores / MANIFEST).write_text(json.dumps(json.loads(manifest) | {"finished": None}))
    with pytest.raises(ScoresError, match="is not finished"):
        make_levels(scores, source=source, out=out, num_levels=4)
    (scores / MANIFEST).write_text(manifest)
    for path in (rejects_path(scores, 1), part_path(scores, 1)):
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(ScoresError, match=r"part-00001\.parquet.* cannot be read.*run the same"):
            make_levels(scores, source=source, out=out, num_levels=4)
    with pytest.raises(ScoresError, match="nowhere cannot be read: No such file"):
        make_levels(tmp_path / "nowhere", source=source, out=out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScoresError, match=r"empty has no scores: neither a manifest\.json"):
        make_levels(tmp_path / "empty", source=source, out=out)
    assert not out.exists()


def test_what_is_read_is_never_written_over(source: Path, scores: Path, table: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for out in (source, tmp_path / "link" / source.name, scores / LEVELS):
        with pytest.raises(ScoresError, match="is an input or must be kept"):
            make_levels(scores, source=source, out=out, num_levels=4)
    for out in (table / "0.parquet", tmp_path / "link" / "metadata" / "new.parquet"):
        with pytest.raises(ScoresError, match="is an input or must be kept"):
            make_levels(table, out=out, num_levels=4, score_column="clip_l14_similarity_score")
    assert source.read_bytes() == before


def test_a_changed_or_missing_source_is_refused(source: Path, scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    source.write_bytes(source.read_bytes() + b"\n")
    with pytest.raises(ScoresError, match="scores of a different file"):
        make_levels(scores, source=source, out=out, num_levels=4)
    source.unlink()
    with pytest.raises((ScoresError, SourceError), match="cannot be read"):
        make_levels(scores, source=source, out=out, num_levels=4)
    assert not out.exists()


def test_options_that_do_not_go_together_are_refused(source: Path, scores: Path, table: Path, tmp_path: Path) -> None:
    column = {"score_column": "clip_l14_similarity_score"}
    text = tmp_path / "notes.txt"
    text.write_text("notes")
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (
            scores,
            {"out": tmp_path / "o.json"},
            r"the file or folder that was scored with --source, or write o\.parquet",
        ),
        (scores, {"out": tmp_path / "o.json", "source": text}, "is not a JSON file"),
        (scores, {"out": tmp_path / "o.parquet", "source": source}, "omit it"),
        (scores, {"out": tmp_path / "o.csv"}, r"must end in \.json, \.jsonl or \.parquet"),
        (scores, {"keep": "1"}, "give both or neither"),
        (scores, {"keep": "1-9", "uids": tmp_path / "u.npy"}, "expected levels from 1 to 4"),
        (scores, {"keep": "1", "uids": tmp_path / "u.csv"}, r"must end in \.npy or \.txt, got u\.csv"),
        (scores, {"keep": "1", "uids": tmp_path / "u.npy"}, r"'id-1' is not 32 hex.* write u\.txt"),
        (table, column, "with --out or --uids"),
        (table, column | {"out": tmp_path / "o.json"}, r"write o\.parquet"),
        (text, {"out": tmp_path / "o.parquet"}, "has no scores: expected a folder"),
    ]
    for path, options, message in cases:
        with pytest.raises(ScoresError, match=message):
            make_levels(path, num_levels=4, **options)
    assert not {path.name for path in tmp_path.iterdir()} & {"o.json", "o.parquet", "u.npy", "u.csv"}


def test_a_column_that_is_not_there_names_those_that_are(table: Path) -> None:
    with pytest.raises(ScoresError, match=r"no column score; the columns are: uid, clip_l14.*--score-column"):
        open_scores(table)


def test_real_scores_become_levels(write_pairs: Callable[..., Path], clip_scorer: PairScorer, tmp_path: Path) -> None:
    pairs, folder = write_pairs(16, at_5={"image": "gone.png"}), tmp_path / "scores"
    score_source(open_pairs(pairs, shard_size=7), clip_scorer, folder, batch_size=5, workers=0, max_reject_share=0.1)
    made = make_levels(folder, source=pairs, out=tmp_path / "out.jsonl", num_levels=5)
    assert made.counts.tolist() == [3] * 5
    written = lines(tmp_path / "out.jsonl")
    assert "pair-5" not in [record["id"] for record in written]
    ordered = sorted(written, key=lambda record: record["score"])
    assert [record["similarity"] for record in ordered] == sorted(record["similarity"] for record in written)


@pytest.mark.parametrize("name", ["part-00000.parquet", "rejects-00001.parquet", "part-00009.parquet", MANIFEST])
def test_nothing_of_a_folder_of_scores_is_written_over(name: str, scores: Path, source: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in scores.iterdir() if path.is_file()}
    (tmp_path / "link").symlink_to(scores, target_is_directory=True)
    (tmp_path / name).symlink_to(scores / name)
    options: dict[str, Any] = {"source": source} if name == MANIFEST else {}
    through_a_link = [tmp_path / name] if (scores / name).exists() else []
    for out in (scores / name, tmp_path / "link" / name, scores / ".." / "link" / name, *through_a_link):
        with pytest.raises(ScoresError, match="is an input or must be kept"):
            make_levels(scores, out=out, num_levels=4, **options)
    assert {path: path.read_bytes() for path in scores.iterdir() if path.is_file()} == before


def test_a_byte_changed_in_a_part_ends_with_an_error(scores: Path, tmp_path: Path) -> None:
    path = part_path(scores, 1)
    content = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(2)
    content[chunk.data_page_offset + chunk.total_compressed_size - 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ScoresError, match=r"part-00001\.parquet or its rejects cannot be read"):
        make_levels(scores, out=tmp_path / "out.parquet", num_levels=4)


@pytest.mark.parametrize("options", [{"num_levels": 4}, {"method": "width"}])
def test_borders_leave_nothing_to_choose(options: dict[str, Any], scores: Path, tmp_path: Path) -> None:
    fit_levels(VALUES, 3).save(tmp_path / "other.json")
    with pytest.raises(ScoresError, match="omit --levels and --method"):
        make_levels(scores, borders=tmp_path / "other.json", **options)
    assert not (scores / LEVELS).exists()


def test_an_id_with_a_line_break_is_not_written_as_two(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a", "b\nforged", "c"], "score": [0.1, 0.2, 0.3]}), tmp_path / "t.parquet")
    with pytest.raises(ScoresError, match=r"'b\\nforged' contains a line break"):
        make_levels(tmp_path / "t.parquet", uids=tmp_path / "u.txt", keep="1-2", num_levels=2)
    assert not (tmp_path / "u.txt").exists()


@pytest.mark.parametrize("suffix", [".txt", ".npy"])
def test_ids_that_do_not_tell_what_is_kept_are_not_written(suffix: str, tmp_path: Path) -> None:
    """Such as the keys of tar files, which may begin anew in each."""
    ids = [f"{number:032x}" for number in (0, 1, 1, 2)]
    pq.write_table(pa.table({"id": ids, "score": [0.1, 0.2, 0.3, 0.4]}), tmp_path / "t.parquet")
    uids = (tmp_path / "u").with_suffix(suffix)
    out = tmp_path / "levels.parquet"
    out.write_bytes(b"of earlier scores")
    with pytest.raises(ScoresError, match=rf"the id '{1:032x}' belongs to a row that is kept and to one that is not"):
        make_levels(tmp_path / "t.parquet", out=out, uids=uids, keep="2", num_levels=2)
    assert {path.name for path in tmp_path.iterdir()} == {"t.parquet", "levels.parquet"}
    assert out.read_bytes() == b"of earlier scores"
    # Equal ids that are all kept are no fault.
    make_levels(tmp_path / "t.parquet", uids=uids, keep="1-2", num_levels=2)
    assert uids.exists()


def test_json_is_written_without_what_json_cannot_hold(tmp_path: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out.json"
    data.write_text(f'{{"score": 0.5}}\n{{"score": 1e400}}\n{{"score": 1{"0" * 400}}}\n{{"score": 0.25}}\n')
    made = make_levels(data, out=out, num_levels=2)
    assert (made.without, made.counts.tolist()) == (2, [1, 1])
    data.write_text('{"score": 0.5}\n{"score": 0.25, "width": 1e400}\n')
    with pytest.raises(ScoresError, match=r"record 1 of .* has a field that is NaN or outside the range"):
        make_levels(data, out=out, num_levels=2)
    assert len(json.loads(out.read_text())) == 2


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("columns", "lost"),
    [
        ({"score_column": "clip"}, "score, level"),
        ({"score_column": "clip", "id_column": "uid"}, "id, score, level"),
        ({"score_column": {"clip": 0.75, "score": 0.25}}, "score, level"),
        ({"score_column": "score"}, "level"),
        ({"score_column": "level"}, "score"),
    ],
)
def test_own_columns_that_the_output_replaces_are_named(
    suffix: str, columns: dict[str, Any], lost: str, tmp_path: Path
) -> None:
    path, out = tmp_path / f"in{suffix}", tmp_path / "out.parquet"
    rows = [{"id": f"i{n}", "uid": f"u{n}", "clip": n / 4, "score": -n, "level": n} for n in range(4)]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        path.write_text("".join(",".join(map(str, row)) + "\n" for row in [rows[0], *(r.values() for r in rows)]))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = make_levels(path, out=out, num_levels=2, **columns)
    assert f"{out} has new values of {lost}; rename these in the input to keep their own values too" in made.notes


def test_own_fields_of_records_that_the_output_replaces_are_named(tmp_path: Path) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps({"clip": n / 4, "score": 0, "similarity": 3}) + "\n" for n in range(4)))
    (note,) = make_levels(path, out=out, num_levels=2, score_column="clip").notes
    assert note.startswith(f"{out} has new values of similarity, score;")
    assert make_levels(path, out=tmp_path / "o.parquet", num_levels=2, score_column="clip").notes[0].count("score") == 1
    path.write_text("".join(json.dumps({"score": n / 4, "level": 3}) + "\n" for n in range(4)))
    assert make_levels(path, out=out, num_levels=2).notes == ()


def test_a_csv_cell_without_a_score_is_no_score_and_another_names_its_column(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    cells = ["0.5", "None", "null", "NA", "nan", "", "<NA>", "0.25"]
    path.write_text("url,score\n" + "".join(f"None,{cell}\n" for cell in cells))
    made = make_levels(path, out=tmp_path / "out.parquet", num_levels=2)
    assert (made.without, made.counts.sum()) == (6, 2)
    assert pq.read_table(tmp_path / "out.parquet")["url"].to_pylist() == ["None", "None"]
    path.write_text("url,score\na,0.5\nb,high\n")
    with pytest.raises(ScoresError, match=r"in the column score: .*'high'"):
        make_levels(path, out=tmp_path / "out.parquet", num_levels=2)


def test_a_folder_that_is_scored_again_while_its_levels_are_written_is_refused(
    source: Path, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = sketch.ScoreCollector.fit

    def score_again(collector: sketch.ScoreCollector, *args: Any) -> AlignmentLevels:
        write_part(scores, 0, read_whole_part(scores, 0), [])
        return fit(collector, *args)

    monkeypatch.setattr(sketch.ScoreCollector, "fit", score_again)
    with pytest.raises(ScoresError, match="changed while its levels were made; nothing was written, start again"):
        make_levels(scores, source=source, out=tmp_path / "out.jsonl", num_levels=4)
    assert not (tmp_path / "out.jsonl").exists() and not (scores / LEVELS).exists()


def test_a_source_that_changes_while_its_levels_are_written_is_refused(
    source: Path, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = sketch.ScoreCollector.fit

    def change(collector: sketch.ScoreCollector, *args: Any) -> AlignmentLevels:
        source.write_text(source.read_text(encoding="utf-8").replace("caption", "CAPTION"), encoding="utf-8")
        return fit(collector, *args)

    monkeypatch.setattr(sketch.ScoreCollector, "fit", change)
    with pytest.raises(ScoresError, match="or the file has changed"):
        make_levels(scores, source=source, out=tmp_path / "out.jsonl", num_levels=4)
    assert not (tmp_path / "out.jsonl").exists()
