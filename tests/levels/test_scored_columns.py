"""Levels are written beside the caption that was scored, whichever column or field it is in."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aligngpt.data.records.pairs import open_pairs
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import read_samples
from aligngpt.levels.making import make_levels
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source
from aligngpt.scoring.manifest import read_manifest
from aligngpt.scoring.score_files import ScoresError

CAPTIONS = [f"the short caption {number}" for number in range(6)]
LONG = ["a red circle", "blue square on the left of a green circle", "no", "two big shape", "the yellow square", "a"]


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    names = [f"{number}.png" for number in range(6)]
    for number, name in enumerate(names):
        Image.new("RGB", (40, 36), (40 * number, 90, 0)).save(tmp_path / name)
        Image.new("RGB", (40, 36), (0, 40 * number, 90)).save(tmp_path / f"other-{name}")
    return names


def written(kind: str, folder: Path, pictures: list[str]) -> Path:
    rows = [
        {"image": name, "caption": caption, "alt": alt, "photo": f"other-{name}"}
        for name, caption, alt in zip(pictures, CAPTIONS, LONG, strict=True)
    ]
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        (folder / "cc.csv").write_text("\n".join(lines) + "\n")
        return folder / "cc.csv"
    (folder / "cc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "cc.jsonl"


def scored(source: Path, out: Path, scorer: PairScorer, **columns: Any) -> Path:
    score_source(open_pairs(source, shard_size=4, **columns), scorer, out, batch_size=2)
    return out


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_the_record_has_the_caption_that_was_scored(
    kind: str, pictures: list[str], clip_scorer: PairScorer, tmp_path: Path
) -> None:
    source = written(kind, tmp_path, pictures)
    for columns, captions in (({}, CAPTIONS), ({"caption_column": "alt"}, LONG)):
        scores = scored(source, tmp_path / f"scores-{len(columns)}", clip_scorer, **columns)
        make_levels(scores, source=source, out=tmp_path / "lv.jsonl", num_levels=2)
        samples = [sample for sample, _ in read_samples(tmp_path / "lv.jsonl", Rejects(None, max_share=0.0))]
        assert [sample.caption for sample in samples] == captions
        assert [sample.images for sample in samples] == [(name,) for name in pictures]
        assert {sample.level for sample in samples} == {1, 2}


def test_the_record_has_the_image_that_was_scored(pictures: list[str], clip_scorer: PairScorer, tmp_path: Path) -> None:
    source = written("csv", tmp_path, pictures)
    scores = scored(source, tmp_path / "scores", clip_scorer, image_column="photo")
    make_levels(scores, source=source, out=tmp_path / "lv.jsonl", num_levels=2)
    assert [record["image"] for record in records_of(tmp_path / "lv.jsonl")] == [f"other-{name}" for name in pictures]


def test_a_field_of_the_json_beside_an_image_is_written(
    pictures: list[str], clip_scorer: PairScorer, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, alt in zip(pictures, LONG, strict=True):
        (tmp_path / name).rename(folder / name)
        (folder / name).with_suffix(".txt").write_text("the text")
        (folder / name).with_suffix(".json").write_text(json.dumps({"caption": "of json", "alt": alt}))
    scores = scored(folder, tmp_path / "scores", clip_scorer, caption_column="alt")
    make_levels(scores, source=folder, out=tmp_path / "lv.jsonl", num_levels=2)
    assert [record["caption"] for record in records_of(tmp_path / "lv.jsonl")] == LONG


def test_scores_that_do_not_say_what_was_scored_are_refused(
    pictures: list[str], write_scores: Callable[..., Path], tmp_path: Path
) -> None:
    source = written("csv", tmp_path, pictures)
    scores = write_scores(source, {number: number / 8 for number in range(6)}, 6)
    found = read_manifest(scores)
    replace(found, source=found.source | {"kind": "csv"}).write(scores)
    with pytest.raises(ScoresError, match="did not record the columns that were scored; score the source again"):
        make_levels(scores, source=source, out=tmp_path / "lv.jsonl", num_levels=2)
    assert not (tmp_path / "lv.jsonl").exists()
