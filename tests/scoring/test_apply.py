"""Levels written into a data file: the authors' numbers, nothing else touched, and no scores of something else."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from aligngpt.alignment.levels import AlignmentLevels, LevelsError, fit_levels
from aligngpt.data.rejects import Rejects
from aligngpt.data.sources import read_samples
from aligngpt.scoring.apply import LEVELS, apply_levels, make_levels, read_scores
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.score import MANIFEST, SCORES, Manifest, ScoresError, ScoreSummary, file_fingerprint, score_file

VALUES = [0.31, 0.12, 0.25, 0.12, 0.05, 0.44, 0.27, 0.18]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eight pairs with fields of all kinds, and a record among them that is none."""
    path = tmp_path / "data.jsonl"
    records: list[dict[str, Any]] = [
        {"image": f"{index}.png", "caption": f"größe {index}", "extra": {"nested": [index, None]}, "id": index}
        for index in range(len(VALUES))
    ]
    records[2]["similarity"] = 99
    records[3] = {
        "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "that"}],
        "image": "3.png",
        "id": "three",
    }
    records.insert(4, {"id": "no pair", "caption": "without image"})
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def write_scores(tmp_path: Path) -> Callable[..., Path]:
    def make(
        source: Path, values: Mapping[int, float], name: str = "scores", finished: ScoreSummary | None = None
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        lines = [json.dumps({"record": record, "id": str(record), "score": score}) for record, score in values.items()]
        (folder / SCORES).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        summary = finished or ScoreSummary(len(values), 1)
        (folder / MANIFEST).write_text(json.dumps(asdict(Manifest(file_fingerprint(source), "model", 4, summary))))
        return folder

    return make


@pytest.fixture
def scores(source: Path, write_scores: Callable[..., Path]) -> Path:
    return write_scores(source, dict(zip([0, 1, 2, 3, 5, 6, 7, 8], VALUES, strict=True)))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_levels_and_scores_are_written_and_nothing_else_changes(source: Path, scores: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    make_levels(scores, source, tmp_path / "out.jsonl", num_levels=4)
    records, written = lines(source), lines(tmp_path / "out.jsonl")
    # In order: 0.05 0.12 0.12 | 0.18 | 0.25 0.27 | 0.31 0.44; the two 0.12 are not parted.
    assert [record["score"] for record in written] == VALUES
    levels = [record["similarity"] for record in written]
    assert levels == [3, 0, 2, 0, 0, 3, 2, 1]
    del records[4]
    for record, found in zip(records, written, strict=True):
        added = {"similarity": found["similarity"], "score": found["score"]}
        assert found == record | added
        assert [name for name in found if name not in added] == [name for name in record if name not in added]
    assert source.read_bytes() == before


def test_the_written_levels_are_read_back_as_one_to_n(source: Path, scores: Path, tmp_path: Path) -> None:
    levels, _ = make_levels(scores, source, tmp_path / "out.jsonl", num_levels=4)
    rejects = Rejects(None)
    samples = [sample for sample, _ in read_samples(tmp_path / "out.jsonl", rejects)]
    assert rejects.count == 0
    assert [sample.level for sample in samples] == levels.assign(VALUES).tolist()
    assert [sample.score for sample in samples] == VALUES


def test_counts_sum_up_to_the_scored_pairs(source: Path, scores: Path, tmp_path: Path) -> None:
    levels, counts = make_levels(scores, source, tmp_path / "out.jsonl", num_levels=4)
    assert levels.num_levels == 4
    assert counts.tolist() == [3, 1, 2, 2]
    written = [record["similarity"] for record in lines(tmp_path / "out.jsonl")]
    assert [written.count(level) for level in range(4)] == counts.tolist()


def test_width_cuts_the_range_and_quantile_the_order(source: Path, scores: Path, tmp_path: Path) -> None:
    by_width, counts = make_levels(scores, source, tmp_path / "out.jsonl", num_levels=3, method="width")
    assert by_width.method == "width"
    assert by_width.borders == pytest.approx([0.18, 0.31])
    assert counts.sum() == 8
    by_order, counts = make_levels(scores, source, tmp_path / "out.jsonl", num_levels=2, method="quantile")
    assert by_order.borders == pytest.approx([0.215])
    assert counts.tolist() == [4, 4]


def test_the_levels_are_kept_with_the_scores(source: Path, scores: Path, tmp_path: Path) -> None:
    levels, _ = make_levels(scores, source, tmp_path / "out.jsonl", num_levels=4)
    assert AlignmentLevels.load(scores / LEVELS) == levels == fit_levels(VALUES, 4)


def test_the_borders_of_other_scores_are_taken_as_they_are(source: Path, scores: Path, tmp_path: Path) -> None:
    fit_levels([0.0, 0.2, 0.26, 0.4, 0.9], 5).save(tmp_path / "other.json")
    other = AlignmentLevels.load(tmp_path / "other.json")
    levels, counts = make_levels(
        scores, source, tmp_path / "out.jsonl", num_levels=2, method="width", borders=tmp_path / "other.json"
    )
    assert levels == other == AlignmentLevels.load(scores / LEVELS)
    assert counts.tolist() == [1, 3, 3, 1, 0]
    assert [record["similarity"] + 1 for record in lines(tmp_path / "out.jsonl")] == other.assign(VALUES).tolist()


def test_no_borders_or_too_few_scores_are_an_error(source: Path, scores: Path, tmp_path: Path) -> None:
    with pytest.raises(LevelsError, match="holds no levels"):
        make_levels(scores, source, tmp_path / "out.jsonl", borders=source)
    with pytest.raises(LevelsError, match="too few for 8 levels"):
        make_levels(scores, source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    assert not (scores / LEVELS).exists()


def test_a_name_in_json_makes_an_array(source: Path, scores: Path, tmp_path: Path) -> None:
    for name in ("out.json", "out.jsonl"):
        make_levels(scores, source, tmp_path / name, num_levels=4)
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == lines(tmp_path / "out.jsonl")


def test_an_array_is_read_as_well(source: Path, write_scores: Callable[..., Path], tmp_path: Path) -> None:
    array = tmp_path / "data.json"
    array.write_text(json.dumps(lines(source)), encoding="utf-8")
    folder = write_scores(array, {0: 0.1, 8: 0.9})
    make_levels(folder, array, tmp_path / "out.jsonl", num_levels=2)
    assert [(record["id"], record["similarity"]) for record in lines(tmp_path / "out.jsonl")] == [(0, 0), (7, 1)]


def test_unfinished_scores_are_refused(source: Path, scores: Path, tmp_path: Path) -> None:
    manifest = json.loads((scores / MANIFEST).read_text())
    (scores / MANIFEST).write_text(json.dumps(manifest | {"finished": None}))
    with pytest.raises(ScoresError, match="is not finished"):
        make_levels(scores, source, tmp_path / "out.jsonl", num_levels=4)
    with pytest.raises(ScoresError, match="is not finished"):
        read_scores(scores)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_scores_that_are_cut_short_are_refused(source: Path, scores: Path, tmp_path: Path, keep: int) -> None:
    (scores / SCORES).write_bytes((scores / SCORES).read_bytes()[:keep])
    with pytest.raises(ScoresError, match=r"whole lines, expected 8"):
        make_levels(scores, source, tmp_path / "out.jsonl", num_levels=4)


def test_a_torn_line_too_many_is_refused(source: Path, scores: Path) -> None:
    with (scores / SCORES).open("a") as file:
        file.write('{"record": 9')
    with pytest.raises(ScoresError, match=r"whole lines, expected 8"):
        read_scores(scores)


def test_missing_scores_are_refused(source: Path, scores: Path, tmp_path: Path) -> None:
    (scores / SCORES).unlink()
    with pytest.raises(ScoresError, match=r"scores.jsonl cannot be read"):
        make_levels(scores, source, tmp_path / "out.jsonl", num_levels=4)
    with pytest.raises(ScoresError, match="holds no scores"):
        make_levels(tmp_path / "nowhere", source, tmp_path / "out.jsonl")


def test_the_source_is_never_written_over(source: Path, scores: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for out in (source, tmp_path / "link" / source.name):
        with pytest.raises(ScoresError, match="is the file that was scored"):
            make_levels(scores, source, out, num_levels=4)
    assert source.read_bytes() == before


def test_a_changed_or_missing_source_is_refused(source: Path, scores: Path, tmp_path: Path) -> None:
    source.write_bytes(source.read_bytes() + b"\n")
    with pytest.raises(ScoresError, match="scores of another file"):
        make_levels(scores, source, tmp_path / "out.jsonl", num_levels=4)
    source.unlink()
    with pytest.raises(ScoresError, match="cannot be read"):
        apply_levels(source, scores, tmp_path / "out.jsonl", fit_levels(VALUES, 4))
    assert not (tmp_path / "out.jsonl").exists()


def test_real_scores_become_levels(write_pairs: Callable[..., Path], clip_scorer: PairScorer, tmp_path: Path) -> None:
    pairs = write_pairs(16, at_5={"image": "gone.png"})
    score_file(pairs, clip_scorer, tmp_path / "scores", batch_size=5, max_reject_share=0.1)
    _, counts = make_levels(tmp_path / "scores", pairs, tmp_path / "out.jsonl", num_levels=5)
    assert counts.tolist() == [3] * 5
    written = lines(tmp_path / "out.jsonl")
    assert "pair-5" not in [record["id"] for record in written]
    ordered = sorted(written, key=lambda record: record["score"])
    assert [record["similarity"] for record in ordered] == sorted(record["similarity"] for record in written)
