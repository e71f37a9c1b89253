"""A try on the first pairs of a source: which ones are scored, and that the folder is not taken for the whole."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from aligngpt.data.records.pairs import open_pairs
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.first_pairs import FirstPairs
from aligngpt.scoring.job import read_scores, score_source
from aligngpt.scoring.manifest import MANIFEST, read_manifest
from aligngpt.scoring.score_files import ScoresError


@pytest.mark.parametrize(("limit", "shards"), [(1, [1]), (4, [4]), (6, [4, 2]), (10, [4, 4, 2]), (99, [4, 4, 2])])
def test_only_the_first_records_are_read(limit: int, shards: list[int], write_pairs: Callable[..., Path]) -> None:
    whole = open_pairs(write_pairs(10, at_1={"image": None}), shard_size=4)
    first = FirstPairs(whole, limit)
    assert [shard.records for shard in first.shards()] == shards
    items = [item for shard in first.shards() for item in first.read(shard)]
    assert items == [item for shard in whole.shards() for item in whole.read(shard)][:limit]
    assert (first.kind, first.fingerprint(), first.settings()) == (whole.kind, whole.fingerprint(), whole.settings())


def test_samples_of_tar_files_are_counted_up_to_the_limit(write_pairs: Callable[..., Path], tmp_path: Path) -> None:
    content = (write_pairs(1).parent / "0.png").read_bytes()
    for name in ("a.tar", "b.tar", "c.tar"):
        with tarfile.open(tmp_path / name, "w") as tar:
            for key in range(3):
                for suffix, data in (("png", content), ("txt", b"a red circle")):
                    info = tarfile.TarInfo(f"{name}-{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    first = FirstPairs(open_pairs(str(tmp_path / "*.tar")), 5)
    assert [shard.records for shard in first.shards()] == [3, 2]
    assert [len(list(first.read(shard))) for shard in first.shards()] == [3, 2]


def test_a_limit_below_one_is_refused(write_pairs: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="at least 1, found 0"):
        FirstPairs(open_pairs(write_pairs(2)), 0)


def test_the_first_pairs_and_all_of_them_have_different_folders(
    write_pairs: Callable[..., Path], clip_scorer: PairScorer, tmp_path: Path
) -> None:
    whole = open_pairs(write_pairs(5), shard_size=10)
    out = tmp_path / "first"
    assert score_source(FirstPairs(whole, 3), clip_scorer, out, workers=0).scored == 3
    assert read_scores(out)["id"].to_pylist() == ["pair-0", "pair-1", "pair-2"]
    assert read_manifest(out).limit == json.loads((out / MANIFEST).read_text())["limit"] == 3
    with pytest.raises(ScoresError, match=r"another limit \(only the first 3 records, now all records\)"):
        score_source(whole, clip_scorer, out, workers=0)
    with pytest.raises(ScoresError, match=r"only the first 3 records, now only the first 4 records"):
        score_source(FirstPairs(whole, 4), clip_scorer, out, workers=0)
    score_source(whole, clip_scorer, tmp_path / "all", workers=0)
    with pytest.raises(ScoresError, match=r"another limit \(all records, now only the first 5 records\)"):
        score_source(FirstPairs(whole, 5), clip_scorer, tmp_path / "all", workers=0)
