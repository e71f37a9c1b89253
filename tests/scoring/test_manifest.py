"""A folder of scores belongs to one source, read in one way, and one model: any other job is refused, nothing mixed."""

import io
import json
import multiprocessing
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from listed_pairs import ListedPairs, draw_pictures, random_captions
from typer.testing import CliRunner

from aligngpt.cli import app
from aligngpt.data.records.pairs import open_pairs
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import read_scores, score_source
from aligngpt.scoring.manifest import MANIFEST, Manifest, claim, read_manifest
from aligngpt.scoring.score_files import ScoresError

COUNT, SHARD_SIZE = 6, 2


@pytest.fixture
def score(clip_scorer: PairScorer, tmp_path: Path) -> Callable[..., Any]:
    """Score a source into the folder `out`, with two images or captions per batch."""

    def call(source: Any, out: str = "out", **options: Any) -> Any:
        return score_source(source, clip_scorer, tmp_path / out, **{"batch_size": 2, "workers": 0} | options)

    return call


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def rows(folder: Path) -> list[dict[str, str]]:
    """Records with two fields each for caption, image and id, and two folders of images."""
    folder.mkdir(exist_ok=True)
    names = draw_pictures(folder, COUNT)
    shutil.copytree(folder, folder / "other")
    captions = random_captions(2 * COUNT)
    return [
        {
            "caption": captions[number],
            "text": captions[COUNT + number],
            "image": names[number],
            "path": names[-1 - number],
            "id": f"id-{number}",
            "uid": f"uid-{number}",
        }
        for number in range(COUNT)
    ]


def as_lines(folder: Path) -> Path:
    path = folder / "metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(folder)))
    return path


def as_llava(folder: Path) -> Path:
    path = folder / "pairs.json"
    path.write_text(json.dumps(rows(folder)))
    return path


def as_csv(folder: Path) -> Path:
    records, path = rows(folder), folder / "pairs.csv"
    lines = [",".join(records[0]), *(",".join(row.values()) for row in records)]
    path.write_text("\n".join(lines) + "\n")
    return path


def as_parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows(folder)), path := folder / "pairs.parquet")
    return path


def as_tars(folder: Path) -> Path:
    for number, row in enumerate(rows(folder)):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for name, data in (
                (f"{number}.png", (folder / row["image"]).read_bytes()),
                (f"{number}.json", json.dumps(row).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return folder


COLUMNS = {"caption_column": "text", "image_column": "path", "id_column": "uid"}
TABLES = (as_lines, as_csv, as_parquet)
CHANGES = [
    *((make, {name: value}, name.replace("_", " ")) for make in TABLES for name, value in COLUMNS.items()),
    *((make, {"image_root": "other"}, "image root") for make in (*TABLES, as_llava)),
    *((as_tars, {name: COLUMNS[name]}, name.replace("_", " ")) for name in ("caption_column", "id_column")),
    (as_parquet, {"shard_size": 3}, "number of shards"),
]


@pytest.mark.parametrize("is_finished", [False, True], ids=["unfinished", "finished"])
@pytest.mark.parametrize(
    ("make", "change", "named"), CHANGES, ids=[f"{make.__name__}-{next(iter(change))}" for make, change, _ in CHANGES]
)
def test_a_source_that_is_read_in_another_way_is_refused_by_name(
    make: Callable[[Path], Path],
    change: dict[str, Any],
    named: str,
    is_finished: bool,
    score: Callable,
    tmp_path: Path,
) -> None:
    path = make(tmp_path / "data")
    if "image_root" in change:
        change = {"image_root": path.parent / change["image_root"]}
    score(open_pairs(path, shard_size=SHARD_SIZE), shard=None if is_finished else (0, 2))
    before = content(tmp_path / "out")
    with pytest.raises(ScoresError, match=rf"another {named}\b"):
        score(open_pairs(path, **{"shard_size": SHARD_SIZE} | change))
    assert content(tmp_path / "out") == before


def test_to_name_what_is_found_anyway_is_no_change(score: Callable, tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "data")
    score(open_pairs(path, shard_size=SHARD_SIZE), shard=(0, 2))
    usual = {"caption_column": "caption", "image_column": "image", "id_column": "id", "image_root": path.parent}
    assert score(open_pairs(path, shard_size=SHARD_SIZE, **usual)).finished


def test_data_that_was_moved_with_or_without_its_pictures_is_the_same_source(
    score: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_parquet(tmp_path / "data")
    root = path.parent / "other"
    score(open_pairs(path, shard_size=SHARD_SIZE, image_root=root), shard=(0, 3))
    # Move only the table, to a place from which another path leads to the images.
    (tmp_path / "deep" / "er").mkdir(parents=True)
    alone = Path(shutil.copy(path, tmp_path / "deep" / "er"))
    monkeypatch.chdir(tmp_path)
    score(open_pairs(alone, shard_size=SHARD_SIZE, image_root=Path("data/other")), shard=(1, 3))
    # Copy both, as `cp` does: with other times.
    together = Path(shutil.copytree(path.parent, tmp_path / "deep" / "copy"))
    for file in together.rglob("*"):
        os.utime(file, (1, 1))
    source = open_pairs(together / path.name, shard_size=SHARD_SIZE, image_root=together / "other")
    assert score(source, shard=(2, 3)).finished


@pytest.mark.parametrize("make", [as_lines, as_tars, as_parquet])
def test_a_source_that_changes_while_it_is_scored_is_named_and_nothing_finished(
    make: Callable[[Path], Path], score: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "data")
    source = open_pairs(path, shard_size=SHARD_SIZE)
    read, file = source.read, path / "5.tar" if path.is_dir() else path
    state, old = file.stat(), b"id-5"

    def change(shard: Any) -> Any:
        if shard.index == 1:
            # Same length as before, and same modification time.
            file.write_bytes(file.read_bytes().replace(old, b"new5"))
            os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
        return read(shard)

    assert old in file.read_bytes()
    monkeypatch.setattr(source, "read", change)
    with pytest.raises(ScoresError, match=rf"{path.name} has changed since .*out was begun"):
        score(source)
    assert read_manifest(tmp_path / "out").finished is None


def _claim_at_once(out: Path, manifest: Manifest, barrier: Any, answers: Any) -> None:
    barrier.wait()
    try:
        answers.put(claim(out, manifest).dtype)
    except ScoresError as error:
        answers.put(str(error))


def test_of_jobs_that_claim_a_folder_at_once_one_has_it_and_the_others_compare(tmp_path: Path) -> None:
    """In forked processes, which start fast and do nothing else."""
    listed = ListedPairs([("a", "0.png")], tmp_path, 1)
    asked = [
        Manifest(
            source={"kind": "listed", "fingerprint": listed.fingerprint()},
            shards=1,
            cut="",
            model="model",
            model_fingerprint="",
            preprocessing={},
            dtype=dtype,
            batch_size=2,
            embeddings=False,
        )
        for dtype in ("float32", "bfloat16")
    ]
    if hasattr(asked[0], "reading"):
        asked = [replace(one, reading={}) for one in asked]
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        (out := tmp_path / f"out-{attempt}").mkdir()
        barrier, answers = context.Barrier(4), context.Queue()
        jobs = [context.Process(target=_claim_at_once, args=(out, one, barrier, answers)) for one in asked * 2]
        for job in jobs:
            job.start()
        told = [answers.get(timeout=30) for _ in jobs]
        for job in jobs:
            job.join()
        there = read_manifest(out).dtype
        assert told.count(there) == 2, told
        assert sum("another precision" in answer for answer in told) == 2, told
        assert [path.name for path in out.iterdir()] == [MANIFEST]


def test_where_there_are_no_hard_links_the_first_manifest_stays_too(
    score: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    path = as_parquet(tmp_path / "data")
    score(open_pairs(path, shard_size=SHARD_SIZE), shard=(0, 2))
    with pytest.raises(ScoresError, match="another caption column"):
        score(open_pairs(path, shard_size=SHARD_SIZE, caption_column="text"))
    assert score(open_pairs(path, shard_size=SHARD_SIZE)).finished


@pytest.mark.parametrize("damage", ["damaged", "gone"])
def test_the_advice_about_a_lost_manifest_keeps_the_parts(damage: str, score: Callable, tmp_path: Path) -> None:
    source = open_pairs(as_parquet(tmp_path / "data"), shard_size=SHARD_SIZE)
    score(source)
    whole, manifest = content(tmp_path / "out"), tmp_path / "out" / MANIFEST
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    manifest.write_text("{") if damage == "damaged" else manifest.unlink()
    with pytest.raises(ScoresError, match=r"parts beside it are kept.* another folder as --out, .*move this file to"):
        score(source)
    score(source, "again", shard=(0, 3))
    (tmp_path / "again" / MANIFEST).replace(manifest)
    assert score(source).finished
    assert content(tmp_path / "out") == whole
    assert {path: path.stat().st_mtime_ns for path in parts} == parts


def test_scores_of_an_earlier_version_are_read_but_not_added_to(score: Callable, tmp_path: Path) -> None:
    source = open_pairs(as_parquet(tmp_path / "data"), shard_size=SHARD_SIZE)
    score(source)
    path = tmp_path / "out" / MANIFEST
    held = json.loads(path.read_text())
    held.pop("reading", None)
    path.write_text(json.dumps(held))
    assert read_scores(tmp_path / "out").num_rows == COUNT
    with pytest.raises(ScoresError, match="of an earlier version of aligngpt"):
        score(source)


def test_auto_is_the_precision_that_the_scores_were_begun_in(
    scorer_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise `auto` could choose another precision on another node."""
    path = as_parquet(tmp_path / "data")
    arguments = ["score", str(path), "--model", str(scorer_folder("clip")), "--out", str(tmp_path / "out")]
    options = ["--device", "cpu", "--workers", "0", "--shard-size", "2", "--shard"]
    for share, is_faster in (("0/2", True), ("1/2", False)):
        monkeypatch.setattr("aligngpt.device.supports_bfloat16", lambda _, found=is_faster: found)
        done = CliRunner().invoke(app, [*arguments, *options, share])
        assert done.exit_code == 0, (done.output, done.exception)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.finished is not None and manifest.dtype == "bfloat16"
