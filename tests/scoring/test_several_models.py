"""Several models in one pass: each scores as it would alone, and a folder holds one set of models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from listed_pairs import ListedPairs, draw_pictures, random_captions
from PIL import Image
from typer.testing import CliRunner

from aligngpt.cli import app
from aligngpt.data.images.reference import Picture
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source
from aligngpt.scoring.manifest import MANIFEST, read_manifest
from aligngpt.scoring.score_files import ScoresError, part_path, part_summary
from aligngpt.scoring.several_models import score_columns

COUNT, SHARD_SIZE = 9, 5


@pytest.fixture
def siglip_scorer(scorer_folder: Callable[[str], Path]) -> PairScorer:
    return PairScorer.load(scorer_folder("siglip"), device="cpu", dtype="float32")


@pytest.fixture
def source(tmp_path: Path) -> ListedPairs:
    names = draw_pictures(tmp_path, COUNT)
    # A picture that two pairs share.
    names[3] = names[1]
    return ListedPairs(list(zip(random_captions(COUNT), names, strict=True)), tmp_path, SHARD_SIZE)


def columns(out: Path, shard: int) -> dict[str, list]:
    return pq.read_table(part_path(out, shard)).to_pydict()


def test_each_model_scores_as_alone_and_each_picture_is_opened_once(
    source: ListedPairs,
    clip_scorer: PairScorer,
    siglip_scorer: PairScorer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, Any] = {"batch_size": 2, "workers": 0, "embeddings": True}
    for name, scorer in (("clip", clip_scorer), ("siglip", siglip_scorer)):
        score_source(source, scorer, tmp_path / name, **options)
    opened: list[str] = []
    opening = Picture.open

    def noting(self: Picture) -> Image.Image:
        opened.append(self.name)
        return opening(self)

    monkeypatch.setattr(Picture, "open", noting)
    score_source(source, clip_scorer, tmp_path / "both", others=[siglip_scorer], **options)
    assert len(opened) == COUNT - 1
    for shard in range(2):
        alone, other, both = (columns(tmp_path / name, shard) for name in ("clip", "siglip", "both"))
        assert both.pop("score_siglip") == other["score"] != alone["score"]
        assert both == alone
    (more,) = read_manifest(tmp_path / "both").more_models
    assert (more.column, more.model_fingerprint) == ("score_siglip", siglip_scorer.fingerprint)


@pytest.mark.parametrize("order", [["clip"], ["siglip", "clip"], ["clip", "siglip"]])
def test_a_folder_holds_one_set_of_models(
    order: list[str], source: ListedPairs, clip_scorer: PairScorer, siglip_scorer: PairScorer, tmp_path: Path
) -> None:
    scorers = {"clip": clip_scorer, "siglip": siglip_scorer}
    out = tmp_path / "out"
    score_source(source, clip_scorer, out, others=[siglip_scorer], workers=0, shard=(0, 2))
    before = part_path(out, 0).read_bytes()
    first, *others = (scorers[name] for name in order)
    if order == ["clip", "siglip"]:
        assert score_source(source, first, out, others=others, workers=0).finished
        assert "score_siglip" in columns(out, 1)
    else:
        expected = r"another set of models \(.*clip and .*siglip, now .*\); choose another folder"
        with pytest.raises(ScoresError, match=expected if len(order) == 1 else "another set of models .* model"):
            score_source(source, first, out, others=others, workers=0)
    assert part_path(out, 0).read_bytes() == before


def test_a_folder_of_one_model_is_not_continued_with_two_and_an_older_one_still_loads(
    source: ListedPairs, clip_scorer: PairScorer, siglip_scorer: PairScorer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    score_source(source, clip_scorer, out, workers=0, shard=(0, 2))
    content = json.loads((out / MANIFEST).read_text())
    # Folders of earlier versions do not have this field.
    del content["more_models"]
    (out / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ScoresError, match=r"another set of models \(\S*clip, now \S*clip and \S*siglip\)"):
        score_source(source, clip_scorer, out, others=[siglip_scorer], workers=0)
    assert score_source(source, clip_scorer, out, workers=0).finished


def test_a_renamed_model_keeps_the_column_of_the_folder(
    source: ListedPairs, clip_scorer: PairScorer, siglip_scorer: PairScorer, tmp_path: Path
) -> None:
    score_source(source, clip_scorer, tmp_path / "out", others=[siglip_scorer], workers=0, shard=(0, 2))
    siglip_scorer.model.name_or_path = "other/name"
    score_source(source, clip_scorer, tmp_path / "out", others=[siglip_scorer], workers=0)
    assert "score_siglip" in columns(tmp_path / "out", 1)


def test_a_damaged_score_of_a_further_model_is_noticed(
    source: ListedPairs, clip_scorer: PairScorer, siglip_scorer: PairScorer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    score_source(source, clip_scorer, out, others=[siglip_scorer], workers=0)
    metadata = pq.read_metadata(part_path(out, 0)).row_group(0)
    (chunk,) = (
        metadata.column(index)
        for index in range(metadata.num_columns)
        if metadata.column(index).path_in_schema == "score_siglip"
    )
    content = bytearray(part_path(out, 0).read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    part_path(out, 0).write_bytes(content)
    assert part_summary(out, 0) is None


def test_the_same_model_twice_is_refused(source: ListedPairs, clip_scorer: PairScorer, tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match="are the same, so their scores would be too"):
        score_source(source, clip_scorer, tmp_path / "out", others=[clip_scorer], workers=0)


def test_columns_are_named_after_the_models_and_differ() -> None:
    models = ["google/SigLIP2-base", "mine/siglip2_base", "/a/b/", "+"]
    assert score_columns(models) == ["score_siglip2_base", "score_siglip2_base_2", "score_b", "score_model"]


def test_the_command_tells_the_columns_at_the_start(
    write_pairs: Callable[..., Path], scorer_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    clip, siglip = (str(scorer_folder(kind)) for kind in ("clip", "siglip"))
    arguments = ["score", str(write_pairs(3)), "--device", "cpu", "--precision", "float32", "--model", clip]
    ended = CliRunner().invoke(app, [*arguments, "--model", siglip, "--out", str(tmp_path / "out")])
    assert ended.exit_code == 0, ended.output
    assert f"score: {clip}\nscore_siglip: {siglip}\n" in ended.output
    assert "score_siglip" in columns(tmp_path / "out", 0)
    ended = CliRunner().invoke(app, [*arguments, "--model", clip, "--out", str(tmp_path / "other")])
    assert isinstance(ended.exception, ScoresError)
    assert "is given twice" in str(ended.exception)
