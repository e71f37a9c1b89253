"""Parts: the content of the files, the same bytes for the same shard, and the state after a full disk."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligngpt.scoring.score_files import (
    PART_FIELDS,
    PartSummary,
    Reject,
    ScoresError,
    part_path,
    part_summary,
    part_table,
    read_batches,
    rejects_path,
    write_part,
)

REJECTS = [Reject(1, None, "missing", "b.png does not exist"), Reject(4, "e", "turns", "there is no caption")]


def rows(**changes: Any) -> pa.Table:
    columns: dict[str, Any] = {
        "record": [0, 2, 3],
        "id": ["a", "c", "d"],
        "score": np.array([0.25, -0.5, 1.0], dtype=np.float32),
        "caption_tokens": [5, 9, 77],
        "size": [(40, 30), (41, 31), (42, 32)],
        "image_hash": ["0" * 32, "1" * 32, "2" * 32],
    }
    return part_table(**columns | changes)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    summary = write_part(tmp_path, 12, rows(), REJECTS)
    assert summary == part_summary(tmp_path, 12) == PartSummary(3, {"missing": 1, "turns": 1})
    assert (summary.rejected, summary.records) == (2, 5)
    found = pq.read_table(tmp_path / "part-00012.parquet")
    assert found.schema.equals(pa.schema(PART_FIELDS))
    assert found.to_pylist()[1] == {
        "record": 2,
        "id": "c",
        "score": -0.5,
        "caption_tokens": 9,
        "width": 41,
        "height": 31,
        "image_hash": "1" * 32,
    }
    rejects = pq.read_table(tmp_path / "rejects-00012.parquet").to_pylist()
    assert rejects == [reject._asdict() for reject in REJECTS]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_part(folder, 0, rows(), REJECTS)
    for path in (part_path, rejects_path):
        assert path(tmp_path / "a", 0).read_bytes() == path(tmp_path / "b", 0).read_bytes()


def test_embeddings_are_kept_in_half_precision(tmp_path: Path) -> None:
    images, texts = (np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32) for seed in (1, 2))
    write_part(tmp_path, 0, rows(embeddings=(images, texts)), [])
    found = pq.read_table(part_path(tmp_path, 0))
    assert found.schema.field("image_embedding").type == pa.list_(pa.float16(), 4)
    for name, features in (("image_embedding", images), ("text_embedding", texts)):
        np.testing.assert_array_equal(np.array(found[name].to_pylist()), features.astype(np.float16))


def test_a_shard_without_pairs_or_rejects_has_its_files(tmp_path: Path) -> None:
    empty = rows(record=[], id=[], score=np.empty(0, np.float32), caption_tokens=[], size=[], image_hash=[])
    write_part(tmp_path, 0, empty, [])
    assert part_summary(tmp_path, 0) == PartSummary(0, {})
    assert pq.read_schema(part_path(tmp_path, 0)).equals(pa.schema(PART_FIELDS))


def test_text_that_utf8_cannot_hold_is_escaped(tmp_path: Path) -> None:
    write_part(tmp_path, 0, rows(id=["\ud83d", "c", "d"]), [Reject(1, "\udc00", "missing", "\ud83d")])
    assert pq.read_table(part_path(tmp_path, 0))["id"][0].as_py() == "\\ud83d"
    assert pq.read_table(rejects_path(tmp_path, 0)).to_pylist()[0]["detail"] == "\\ud83d"


@pytest.mark.parametrize("path", [part_path, rejects_path])
@pytest.mark.parametrize("damage", ["cut short", "gone", "of another kind"])
def test_a_damaged_part_has_no_summary(path: Any, damage: str, tmp_path: Path) -> None:
    write_part(tmp_path, 0, rows(), REJECTS)
    file = path(tmp_path, 0)
    if damage == "gone":
        file.unlink()
    elif damage == "cut short":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        pq.write_table(pa.table({"other": [1]}), file)
    assert part_summary(tmp_path, 0) is None


@pytest.mark.parametrize("path", [part_path, rejects_path])
def test_a_changed_byte_never_gives_other_rows(path: Any, tmp_path: Path) -> None:
    write_part(tmp_path, 0, rows(), REJECTS)
    file = path(tmp_path, 0)
    whole, before = file.read_bytes(), pq.read_table(file).to_pylist()
    generator = np.random.default_rng(7)
    noticed = 0
    for place in generator.choice(len(whole), 250, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(generator.integers(8))
        file.write_bytes(damaged)
        if part_summary(tmp_path, 0) is None:
            noticed += 1
        else:
            # The change may have hit only the metadata key of the checksums.
            assert pq.read_table(file).to_pylist() == before
    assert noticed > 230


@pytest.mark.parametrize("damaged_column", ["score", "image_embedding"])
def test_a_damaged_column_is_named_by_whoever_reads_it(damaged_column: str, tmp_path: Path) -> None:
    features = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    write_part(tmp_path, 0, rows(embeddings=(features, features)), [])
    file = part_path(tmp_path, 0)
    content, group = bytearray(file.read_bytes()), pq.read_metadata(file).row_group(0)
    [chunk] = [c for i in range(group.num_columns) if (c := group.column(i)).path_in_schema.startswith(damaged_column)]
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    file.write_bytes(content)
    assert pa.Table.from_batches(read_batches(tmp_path, 1, ["id"]))["id"].to_pylist() == ["a", "c", "d"]
    with pytest.raises(ScoresError, match=rf"part-00000\.parquet cannot be read \(its column {damaged_column} has the"):
        list(read_batches(tmp_path, 1, ["id", damaged_column]))
    assert (part_summary(tmp_path, 0) is None) == (damaged_column == "score")


def test_parts_of_an_older_version_without_checksums_are_read(tmp_path: Path) -> None:
    write_part(tmp_path, 0, rows(), REJECTS)
    for path in (part_path(tmp_path, 0), rejects_path(tmp_path, 0)):
        table = pq.read_table(path).replace_schema_metadata(None)
        pq.write_table(table, path, compression="zstd")
    assert part_summary(tmp_path, 0) == PartSummary(3, {"missing": 1, "turns": 1})
    assert pa.Table.from_batches(read_batches(tmp_path, 1, ["id"]))["id"].to_pylist() == ["a", "c", "d"]


def test_batches_name_their_shard(tmp_path: Path) -> None:
    write_part(tmp_path, 0, rows(), [])
    write_part(tmp_path, 1, rows(id=["x", "y", "z"]), [])
    table = pa.Table.from_batches(read_batches(tmp_path, 2, ["id"]))
    assert table.to_pydict() == {"shard": [0, 0, 0, 1, 1, 1], "id": ["a", "c", "d", "x", "y", "z"]}
    assert pa.Table.from_batches(read_batches(tmp_path, 2)).column_names == ["shard", *pa.schema(PART_FIELDS).names]
    with pytest.raises(ScoresError, match=r"part-00000\.parquet has no column image_embedding"):
        list(read_batches(tmp_path, 2, ["image_embedding"]))
    with pytest.raises(ScoresError, match=r"part-00002\.parquet cannot be read"):
        list(read_batches(tmp_path, 3))


@pytest.mark.parametrize("full_from", [0, 1])
def test_a_full_disk_leaves_the_shard_not_done(full_from: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def fail_later(descriptor: int) -> None:
        # The folder is also synced, after each file.
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            synced.append(descriptor)
        if len(synced) > full_from:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail_later)
    with pytest.raises(OSError, match=r"No space left on device.*the same command again: it resumes") as caught:
        write_part(tmp_path, 0, rows(), REJECTS)
    assert caught.value.errno == errno.ENOSPC
    assert str((rejects_path, part_path)[full_from](tmp_path, 0)) in str(caught.value)
    assert part_summary(tmp_path, 0) is None
    assert not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    write_part(tmp_path, 0, rows(), REJECTS)
    assert part_summary(tmp_path, 0) is not None


def test_an_older_part_is_gone_before_its_rejects_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_part(tmp_path, 0, rows(), REJECTS)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_part(tmp_path, 0, rows(), [])
    assert not part_path(tmp_path, 0).exists()
