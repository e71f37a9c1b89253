"""The pairs on the levels page: the right ones, in bounded memory, read from as few shards as possible."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aligngpt.data.records.pairs import Pair, PairSource, Unusable, open_pairs
from aligngpt.data.sources.base import Shard
from aligngpt.levels import collected, page_content
from aligngpt.levels import page as looking
from aligngpt.levels.making import make_levels
from aligngpt.levels.page import prepare_look
from aligngpt.reports.levels_page import LevelsPage
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.first_pairs import FirstPairs
from aligngpt.scoring.job import read_scores, score_source
from aligngpt.scoring.score_files import ScoresError

COUNT = 30


@pytest.fixture
def source(write_pairs: Callable[..., Path]) -> Path:
    """Thirty pairs: the tenth has the image of the first, three share a caption, one is not a pair."""
    changes: dict[str, Any] = {f"at_{index}": {"caption": "a red circle"} for index in (2, 11, 23)}
    return write_pairs(COUNT, **changes, at_9={"image": "0.png"}, at_5={"image": "none.png"})


@pytest.fixture
def scores(source: Path, clip_scorer: PairScorer, tmp_path: Path) -> Path:
    pairs = open_pairs(source, shard_size=4)
    assert score_source(pairs, clip_scorer, tmp_path / "scores", workers=0).finished
    return tmp_path / "scores"


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[LevelsPage]:
    """The pages that are written, as `LevelsPage` data."""
    made: list[LevelsPage] = []
    monkeypatch.setattr(looking, "build_levels_page", lambda page, out: made.append(page))
    return made


def look(scores: Path, pages: list[LevelsPage], levels: int = 3, **options: Any) -> LevelsPage:
    prepared = prepare_look(scores, scores.parent / "page.html", **options)
    prepared.write(make_levels(scores, num_levels=levels))
    return pages[-1]


def test_pairs_are_shown_with_their_own_captions_and_pictures(
    scores: Path, source: Path, pages: list[LevelsPage]
) -> None:
    page = look(scores, pages, source=source)
    records = {record["id"]: record for record in map(json.loads, source.read_text().splitlines())}
    known = dict(zip(*read_scores(scores).select(["id", "score"]).to_pydict().values(), strict=True))
    assert len(page.examples) == 18
    for pair in (*page.examples, *page.lowest):
        assert pair.caption == records[pair.id]["caption"]
        assert pair.picture_name.endswith(records[pair.id]["image"])
        assert pair.picture is not None and pair.picture.address.startswith("data:image/")
        assert pair.score == known[pair.id]
        assert pair.level == 1 + sum(border <= pair.score for border in page.borders)
    assert [pair.score for pair in page.lowest] == sorted(known.values())
    assert [pair.level for pair in page.examples] == [1] * 6 + [2] * 6 + [3] * 6


def test_numbers_are_those_of_all_scores(scores: Path, pages: list[LevelsPage]) -> None:
    page = look(scores, pages)
    values = read_scores(scores)["score"].to_numpy().astype(np.float64)
    assert page.numbers.count == sum(page.bin_counts) == sum(row.count for row in page.levels) == COUNT - 1
    assert page.numbers.mean == pytest.approx(values.mean())
    assert page.numbers.standard_deviation == pytest.approx(values.std())
    assert (page.numbers.quantiles[0.0], page.numbers.quantiles[1.0]) == (values.min(), values.max())
    assert page.facts["Without a score"] == "1 (missing 1)"
    parts = pa.concat_tables(pq.read_table(path) for path in sorted(scores.glob("part-*.parquet")))
    assert page.by_caption is not None and sum(page.by_caption.counts) == COUNT - 1
    assert page.by_caption.correlation == pytest.approx(
        np.corrcoef(np.log2(parts["caption_tokens"].to_numpy()), values)[0, 1]
    )
    assert page.by_picture is not None and page.by_picture.correlation is None, "all pictures have one size"
    assert page.by_picture.bins == ["1–63"]


def test_same_pictures_and_captions_are_found(scores: Path, source: Path, pages: list[LevelsPage]) -> None:
    page = look(scores, pages, source=source)
    assert page.same_picture is not None and page.same_caption is not None
    assert (page.same_picture.groups, page.same_picture.pairs, page.same_picture.among) == (1, 2, COUNT - 1)
    assert [(group.count, group.first.id) for group in page.same_picture.largest] == [(2, "pair-0")]
    largest = page.same_caption.largest[0]
    assert (largest.count, largest.first.id, largest.first.caption) == (3, "pair-2", "a red circle")


def test_without_a_source_there_are_ids_and_scores(scores: Path, pages: list[LevelsPage]) -> None:
    page = look(scores, pages)
    assert page.same_caption is None and page.same_picture is not None
    pairs = [*page.examples, *page.lowest, *(group.first for group in page.same_picture.largest)]
    assert all(pair.id and pair.caption is None and pair.picture is None for pair in pairs)


def test_the_same_seed_draws_the_same_pairs(scores: Path, pages: list[LevelsPage]) -> None:
    drawn = [[pair.id for pair in look(scores, pages, seed=seed).examples] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_picture_that_cannot_be_opened_any_more_says_why(scores: Path, source: Path, pages: list[LevelsPage]) -> None:
    for index in range(COUNT):
        (source.parent / f"{index}.png").unlink()
    (source.parent / "1.png").write_text("not a picture")
    problems = {pair.id: pair.picture.problem for pair in look(scores, pages, source=source).lowest if pair.picture}
    assert problems["pair-2"] == "missing" and problems["pair-1"] == "not an image"


def test_only_shards_with_a_pair_to_show_are_read(
    scores: Path, source: Path, pages: list[LevelsPage], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    whole = PairSource.read

    def noting(self: PairSource, shard: Shard) -> Iterator[Pair | Unusable]:
        read.append(shard.index)
        return whole(self, shard)  # type: ignore[arg-type]

    monkeypatch.setattr(collected, "LOWEST", 1)
    monkeypatch.setattr(collected, "MOST_EXAMPLES", 0)
    monkeypatch.setattr(page_content, "CAPTIONS_COMPARED", 0)
    prepared = prepare_look(scores, scores.parent / "page.html", source=source)
    made = make_levels(scores, num_levels=2)
    monkeypatch.setattr(PairSource, "read", noting)
    prepared.write(made)
    page = pages[-1]
    shown = [*page.examples, *page.lowest, *(group.first for group in page.same_picture.largest)]  # type: ignore[union-attr]
    assert set(read) == {int(pair.id.removeprefix("pair-")) // 4 for pair in shown}
    assert page.same_caption is not None and page.same_caption.among < COUNT - 1, "it says of how many it speaks"


def test_another_or_changed_source_is_refused(scores: Path, source: Path) -> None:
    with source.open("a") as file:
        file.write('{"image": "1.png", "caption": "more"}\n')
    with pytest.raises(ScoresError, match=r"of a different source than .*, or the source has changed; score it again"):
        prepare_look(scores, Path("page.html"), source=source)


def test_a_table_has_its_numbers_alone(tmp_path: Path, pages: list[LevelsPage]) -> None:
    table = tmp_path / "table.csv"
    table.write_text("id,score\n" + "".join(f"{index},{index / 64}\n" for index in range(64)) + "x,\n")
    prepared = prepare_look(table, tmp_path / "page.html")
    prepared.write(make_levels(table, num_levels=4, out=tmp_path / "out.parquet"))
    page = pages[-1]
    assert [row.count for row in page.levels] == [16] * 4
    assert page.numbers.mean == pytest.approx(63 / 128)
    assert page.facts == {"Method": "quantile", "Without a score": "1 rows"}
    assert not page.examples and not page.lowest and page.same_picture is None and page.by_caption is None


def test_what_cannot_become_a_page_is_refused_before_anything_is_done(tmp_path: Path, scores: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("score\n1\n2\n")
    with pytest.raises(ScoresError, match="omit --source"):
        prepare_look(table, tmp_path / "page.html", source=tmp_path / "pairs.jsonl")
    with pytest.raises(ScoresError, match=re.escape("must end in .html, got page.pdf")):
        prepare_look(scores, tmp_path / "page.pdf")
    with pytest.raises(ScoresError, match="choose another path for the output"):
        prepare_look(scores, tmp_path / "page.html", source=table, written=[None, table])


def test_the_page_itself_is_written(scores: Path, source: Path, tmp_path: Path) -> None:
    prepare_look(scores, tmp_path / "page.html", source=source).write(make_levels(scores, num_levels=3))
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert "a red circle" in page and "pair-2" in page


def test_a_parquet_source_is_cut_as_when_it_was_scored(
    clip_scorer: PairScorer, tmp_path: Path, pages: list[LevelsPage]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(12):
        Image.new("RGB", (30, 30), (20 * index, 0, 90)).save(folder / f"{index}.png")
    rows = pa.table({"title": [f"a circle {index}" for index in range(12)], "file": [f"{i}.png" for i in range(12)]})
    pq.write_table(rows, folder / "rows.parquet", row_group_size=5)
    names = {"caption_column": "title", "image_column": "file"}
    pairs = open_pairs(folder / "rows.parquet", shard_size=4, **names)  # type: ignore[arg-type]
    score_source(pairs, clip_scorer, tmp_path / "scores", workers=0)
    page = look(tmp_path / "scores", pages, 2, source=folder / "rows.parquet", **names)
    assert sorted(pair.caption or "" for pair in page.lowest) == sorted(rows["title"].to_pylist())
    assert all(f"{(pair.caption or '').split()[-1]}.png" in pair.picture_name for pair in page.lowest)


def test_the_rank_error_of_other_scores_is_not_told_of_these(
    scores: Path, tmp_path: Path, pages: list[LevelsPage]
) -> None:
    levels = dataclasses.replace(make_levels(scores, num_levels=2).levels, rank_error=0.25)
    levels.save(tmp_path / "other.json")
    prepared = prepare_look(scores, tmp_path / "page.html")
    prepared.write(make_levels(scores, borders=tmp_path / "other.json"))
    assert pages[-1].rank_error == 0
    assert pages[-1].facts["Borders"] == f"…/{tmp_path.name}/other.json"
    assert pages[-1].full["Borders"] == str(tmp_path / "other.json")
    assert pages[-1].facts["Fitted to"] == f"{COUNT - 1} other scores (quantile)"


def test_a_source_is_shown_as_it_was_read_when_it_was_scored(
    source: Path, clip_scorer: PairScorer, pages: list[LevelsPage], tmp_path: Path
) -> None:
    """There are two caption columns, of which the second was scored, and most images are in another folder."""
    (tmp_path / "images").mkdir()
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    for record in lines:
        if (picture := tmp_path / record["image"]).exists() and record["image"] != "0.png":
            picture.rename(tmp_path / "images" / picture.name)
        record["short"], record["name"] = f"a square {record['id']}", f"own-{record['id']}"
    source.write_text("".join(json.dumps(record) + "\n" for record in lines))
    pairs = open_pairs(source, image_root=tmp_path / "images", caption_column="short", id_column="name", shard_size=4)
    scores = tmp_path / "scores"
    assert score_source(pairs, clip_scorer, scores, workers=0, max_reject_share=0.5).finished
    seen = look(scores, pages, source=source).lowest
    for pair in seen:
        assert pair.caption is not None and pair.caption == f"a square {pair.id.removeprefix('own-')}"
        assert pair.picture is not None and not pair.picture.problem
    for options, words in (
        ({"caption_column": "caption"}, r"caption column \(short, now caption\)"),
        ({"image_root": tmp_path}, r"image root \(images, now \.\)"),
    ):
        with pytest.raises(ScoresError, match=f"read with a different {words} when"):
            prepare_look(scores, tmp_path / "page.html", source=source, **options)


def test_paths_are_short_and_their_full_form_is_kept(
    scores: Path, pages: list[LevelsPage], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = look(scores, pages)
    assert page.facts["Scores"] == f"…/{scores.parent.name}/scores"
    assert page.facts["Model"].endswith("/clip") and page.facts["Model"].startswith("…/")
    assert page.full["Scores"] == str(scores) and Path(page.full["Model"]).is_dir()
    monkeypatch.chdir(scores.parent)
    assert look(Path("scores").resolve(), pages).facts["Scores"] == "scores"


def test_a_try_on_the_first_pairs_shows_these(
    source: Path, clip_scorer: PairScorer, pages: list[LevelsPage], tmp_path: Path
) -> None:
    for limit, size in ((6, 10), (6, 4)):
        out = tmp_path / f"first-{size}"
        pairs = FirstPairs(open_pairs(source, shard_size=size), limit)
        score_source(pairs, clip_scorer, out, workers=0, max_reject_share=0.5)
        page = look(out, pages, source=source, levels=2)
        assert {pair.id for pair in page.lowest} == {f"pair-{index}" for index in range(5)}
        assert all(pair.picture and not pair.picture.problem for pair in page.lowest)
        assert page.facts["Scored"] == "only the first 6 records (--limit)"
