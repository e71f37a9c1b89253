"""Whether scores tell pairs from shuffled ones: the partners, the AUC of a job, and what becomes of it on resuming."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from listed_pairs import ListedPairs, draw_pictures, random_captions

from aligngpt.scoring import separation as module
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source
from aligngpt.scoring.manifest import Manifest, read_manifest
from aligngpt.scoring.score_files import PART_FIELDS, part_path, part_table, write_part
from aligngpt.scoring.separation import separation, separation_warning, shuffled_partners

COUNT = 11


@pytest.fixture
def source(tmp_path: Path) -> ListedPairs:
    return ListedPairs(list(zip(random_captions(COUNT), draw_pictures(tmp_path, COUNT), strict=True)), tmp_path, 4)


def write_scores(out: Path, *parts: tuple[list[float], list[float]]) -> None:
    out.mkdir()
    for shard, (own, shuffled) in enumerate(parts):
        count = len(own)
        table = part_table(
            record=range(count),
            id=list(map(str, range(count))),
            score=np.array(own, dtype=np.float32),
            caption_tokens=[3] * count,
            size=[(4, 4)] * count,
            image_hash=["00"] * count,
            shuffled=np.array(shuffled, dtype=np.float32),
        )
        write_part(out, shard, table, [])


def test_a_partner_has_another_image_and_another_caption() -> None:
    assert shuffled_partners("abcd", "wxyz").tolist() == [1, 2, 3, 0]
    # Two captions of image a follow each other, and the caption y of b is also that of c.
    assert shuffled_partners("aabcd", "wxyyz").tolist() == [2, 2, 4, 4, 0]
    assert shuffled_partners("abc", "www").tolist() == [-1, -1, -1]
    assert shuffled_partners("a", "w").tolist() == [-1]
    assert shuffled_partners("", "").tolist() == []


def test_many_equal_captions_do_not_take_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PARTNERS_TRIED", 2)
    assert shuffled_partners("abcde", "wwwwx").tolist() == [-1, -1, 4, 4, 0]


@pytest.mark.parametrize(
    ("own", "shuffled", "expected"),
    [
        ([0.3, 0.4], [0.1, 0.2], 1.0),
        ([0.1, 0.2], [0.3, 0.4], 0.0),
        ([0.2, 0.2], [0.2, 0.2], 0.5),
        ([0.1, 0.3, -1.0], [0.2, 1.0], 1 / 6),
        ([0.3, 0.1], [0.2, np.nan], 0.5),
        # A spread as small as this one is told apart.
        ([0.20002, 0.20003], [0.20000, 0.20001], 1.0),
    ],
)
def test_the_auc_is_the_share_of_pairs_above_shuffled_ones(
    own: list[float], shuffled: list[float], expected: float, tmp_path: Path
) -> None:
    write_scores(tmp_path / "out", (own[:1], shuffled[:1]), (own[1:], [*shuffled[1:], np.nan][: len(own) - 1]))
    assert separation(tmp_path / "out", 2) == pytest.approx(expected)


def test_without_shuffled_scores_it_is_unknown(tmp_path: Path) -> None:
    write_scores(tmp_path / "out", ([0.3], [np.nan]))
    assert separation(tmp_path / "out", 1) is None


def test_a_shuffled_score_is_that_of_the_caption_of_the_next_pair(
    source: ListedPairs, clip_scorer: PairScorer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    summary = score_source(source, clip_scorer, out, workers=0)
    shifted = [(source.rows[4 + (index + 1) % 4][0], source.rows[4 + index][1]) for index in range(4)]
    score_source(ListedPairs(shifted, tmp_path, 4), clip_scorer, tmp_path / "shifted", workers=0)
    expected = pq.read_table(part_path(tmp_path / "shifted", 0))["score"].to_numpy()
    np.testing.assert_allclose(pq.read_table(part_path(out, 1))["shuffled"].to_numpy(), expected, atol=1e-6)
    own, other = (
        np.concatenate([pq.read_table(part_path(out, shard))[name].to_numpy() for shard in range(3)])
        for name in ("score", "shuffled")
    )
    assert summary.auc == pytest.approx((own[:, None] > other[None, :]).mean())
    assert read_manifest(out).auc == summary.auc


def test_a_part_that_is_scored_again_changes_it(source: ListedPairs, clip_scorer: PairScorer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = score_source(source, clip_scorer, out, workers=0).auc
    names = [f"{index}.png" for index in range(4)]
    contents = [(tmp_path / name).read_bytes() for name in names]
    for name, content in zip(names, [*contents[1:], contents[0]], strict=True):
        (tmp_path / name).write_bytes(content)
    after = score_source(source, clip_scorer, out, workers=0).auc
    assert after is not None and after != before
    assert read_manifest(out).auc == after


def test_a_folder_begun_without_shuffled_scores_is_resumed_without(
    source: ListedPairs, clip_scorer: PairScorer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    score_source(source, clip_scorer, tmp_path / "whole", workers=0, shard=(0, 1))
    out.mkdir()
    manifest = Manifest.of(source, clip_scorer, batch_size=64, embeddings=False)
    replace(manifest, shuffled=False).write(out)
    summary = score_source(source, clip_scorer, out, workers=0)
    assert summary.finished and summary.auc is None
    assert pq.read_schema(part_path(out, 0)).names == [field.name for field in PART_FIELDS]
    assert pq.read_schema(part_path(tmp_path / "whole", 0)).names[-1] == "shuffled"


def test_only_scores_that_do_not_tell_them_apart_are_warned_about() -> None:
    assert separation_warning(0.81, 1000) is None
    assert separation_warning(0.52, 10) is None
    assert "hardly tell" in str(separation_warning(0.52, 1000))
