"""Levels of tar and Parquet files, joined by record number from the table that `aligngpt levels` writes."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aligngpt.data.records.pairs import open_pairs
from aligngpt.data.records.sample import Sample
from aligngpt.data.rejects import Rejects, TooManyRejects
from aligngpt.data.samples.preparing import prepare_samples
from aligngpt.data.sources.base import SourceError
from aligngpt.levels.making import make_levels
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source

WORDS = ["a red circle", "a big green square", "it is blue", "the small one", "red and big", "a yellow square"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_tars(folder: Path) -> Path:
    """Two tar files whose keys are the same, with other pairs; an image of the first one cannot be read."""
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for place in range(6):
                content = b"no image" if (shard, place) == (0, 2) else picture(10 * shard + place)
                caption = WORDS[(place + 2 * shard) % 6].encode()
                for suffix, data in (("png", content), ("txt", caption)):
                    member = tarfile.TarInfo(f"{place:06}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder / "{0..1}.tar"


def write_parquet(folder: Path) -> Path:
    """The same pairs in two Parquet files without ids, in row groups of four."""
    folder.mkdir()
    for shard in range(2):
        rows = [
            {
                "image": b"no image" if (shard, place) == (0, 2) else picture(10 * shard + place),
                "caption": WORDS[(place + 2 * shard) % 6],
            }
            for place in range(6)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard}.parquet", row_group_size=4)
    return folder / "*.parquet"


def scored(data: Path, scorer: PairScorer, tmp_path: Path, num_levels: int = 4) -> tuple[Path, dict[int, int]]:
    """Score the pairs and write their levels; returns the table, and the levels by record number from it."""
    score_source(
        open_pairs(data, shard_size=5), scorer, tmp_path / "scores", batch_size=4, workers=0, max_reject_share=0.2
    )
    table = tmp_path / "levels.parquet"
    make_levels(tmp_path / "scores", out=table, num_levels=num_levels)
    read = pq.read_table(table)
    return table, dict(zip(read["record"].to_pylist(), read["level"].to_pylist(), strict=True))


def prepared(data: Path, levels: Path | None, rejects: Rejects | None = None) -> Sequence[Sample]:
    rejects = Rejects(None, max_share=1.0) if rejects is None else rejects
    return prepare_samples(data, require_level=True, rejects=rejects, levels=levels)


@pytest.mark.parametrize("write", [write_tars, write_parquet])
def test_each_record_gets_its_own_level_although_ids_repeat(
    clip_scorer: PairScorer, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    data = write(tmp_path / "pairs")
    table, levels = scored(data, clip_scorer, tmp_path)
    assert sorted(levels) == [0, 1, *range(3, 12)]
    rejects = Rejects(None, max_share=1.0)
    samples = prepared(data, table, rejects)
    assert {sample.record: sample.level for sample in samples} == levels
    assert rejects.by_reason.total() == 1
    # The same pairs as JSON, whose levels are written into the records.
    pairs = []
    for record in range(12):
        shard, place = divmod(record, 6)
        (tmp_path / f"{record}.png").write_bytes(b"no image" if record == 2 else picture(10 * shard + place))
        pairs.append({"id": record, "image": f"{record}.png", "caption": WORDS[(place + 2 * shard) % 6]})
    listed, out = tmp_path / "pairs.json", tmp_path / "out.jsonl"
    listed.write_text(json.dumps(pairs))
    score_source(open_pairs(listed), clip_scorer, tmp_path / "again", batch_size=4, workers=0, max_reject_share=0.2)
    make_levels(tmp_path / "again", source=listed, out=out, num_levels=4)
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert {record["id"]: record["similarity"] + 1 for record in written} == levels
    # Other levels are another entry of the cache.
    make_levels(tmp_path / "scores", out=table, num_levels=2)
    assert {sample.level for sample in prepared(data, table)} == {1, 2}
    with pytest.raises(TooManyRejects, match="no_level"):
        prepare_samples(data, require_level=True, rejects=Rejects(None, max_share=0.5))


def test_levels_stay_with_their_rows_behind_a_damaged_row_group(clip_scorer: PairScorer, tmp_path: Path) -> None:
    # Scoring cuts the row group of six rows into two shards, training reads it as one.
    path = tmp_path / "pairs.parquet"
    rows = [{"id": f"row {row}", "image": picture(row), "caption": WORDS[row % 6]} for row in range(36)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=6, use_dictionary=False)
    column = pq.read_metadata(path).row_group(1).column(2)
    with path.open("r+b") as file:
        file.seek(column.data_page_offset)
        file.write(b"\xff" * column.total_compressed_size)
    table, levels = scored(path, clip_scorer, tmp_path)
    assert sorted(levels) == [*range(6), *range(12, 36)]
    rejects = Rejects(None, max_share=1.0)
    assert {sample.id: sample.level for sample in prepared(path, table, rejects)} == {
        f"row {record}": level for record, level in levels.items()
    }
    assert rejects.by_reason == {"broken_parquet": 6}


def test_a_table_of_other_data_is_refused(clip_scorer: PairScorer, tmp_path: Path) -> None:
    data = write_tars(tmp_path / "pairs")
    table, _ = scored(data, clip_scorer, tmp_path)
    other = write_parquet(tmp_path / "others")
    with pytest.raises(SourceError, match="has the levels of other data than"):
        prepared(other, table)
    (tmp_path / "pairs" / "1.tar").unlink()
    with pytest.raises(SourceError, match="has the levels of other data than"):
        prepared(tmp_path / "pairs", table)


def test_what_is_no_such_table_says_how_one_is_made(clip_scorer: PairScorer, tmp_path: Path) -> None:
    data = write_tars(tmp_path / "pairs")
    without = tmp_path / "without.parquet"
    pq.write_table(pa.table({"id": ["000000"], "score": [0.5], "level": pa.array([1], pa.int32())}), without)
    with pytest.raises(SourceError, match=r"does not say which records of .*, with `aligngpt levels SCORES --out w"):
        prepared(data, without)
    # Cut again from the table itself, which has the column `record`.
    table, _ = scored(data, clip_scorer, tmp_path)
    make_levels(table, out=tmp_path / "again.parquet", num_levels=2)
    assert "record" in pq.read_schema(tmp_path / "again.parquet").names
    with pytest.raises(SourceError, match=r"again\.parquet .* because it was not made from a folder of scores"):
        prepared(data, tmp_path / "again.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"the levels .*broken\.parquet cannot be read"):
        prepared(data, tmp_path / "broken.parquet")
    with pytest.raises(SourceError, match=r"gone\.parquet cannot be read"):
        prepared(data, tmp_path / "gone.parquet")
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps([{"image": "a.png", "caption": "red"}]))
    with pytest.raises(SourceError, match=r"with `aligngpt levels SCORES --source .*captions\.json --out FILE\.json`"):
        prepared(captions, without)
