"""A source of several shards: interrupted and resumed, shared between processes, and refused by a folder in use."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from listed_pairs import ListedPairs, draw_pictures, random_captions

from aligngpt.data.records.pairs import open_pairs
from aligngpt.data.rejects import TooManyRejects
from aligngpt.data.sources.base import Shard, SourceError
from aligngpt.leftovers import temporary_beside
from aligngpt.scoring import job, reject_share
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import ScoreSummary, read_parts, read_scores, score_source
from aligngpt.scoring.manifest import MANIFEST, read_manifest
from aligngpt.scoring.score_files import PartSummary, ScoresError, part_path, rejects_path
from aligngpt.scoring.shares import parse_share

COUNT, SHARD_SIZE, SHARDS = 23, 5, 5
DONE = ScoreSummary(scored=COUNT - 2, rejected=2, reasons={"missing": 1, "turns": 1}, finished=True)


@pytest.fixture
def source(tmp_path: Path) -> ListedPairs:
    """23 records in five shards; number 7 has no picture, number 16 no caption."""
    rows: list[tuple[str | None, str]] = list(zip(random_captions(COUNT), draw_pictures(tmp_path, COUNT), strict=True))
    rows[7], rows[16] = ("a red circle", "gone.png"), (None, "16.png")
    return ListedPairs(rows, tmp_path, SHARD_SIZE)


@pytest.fixture
def run(clip_scorer: PairScorer, tmp_path: Path) -> Callable[..., ScoreSummary]:
    """Score a source into a folder, with two images or captions per batch, allowing most records to be rejected."""

    def call(source: ListedPairs, out: str = "out", **options: Any) -> ScoreSummary:
        settings = {"batch_size": 2, "max_reject_share": 0.9, "workers": 0} | options
        return score_source(source, settings.pop("scorer", clip_scorer), tmp_path / out, **settings)

    return call


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def written(folder: Path, pattern: str = "part-*") -> dict[str, tuple[int, int]]:
    """The files that exist, each with properties that change when it is rewritten."""
    found = {path.name: path.stat() for path in folder.glob(pattern) if path.is_file()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def test_every_shard_has_its_part_and_the_manifest_says_what_they_are(
    source: ListedPairs, run: Callable, clip_scorer: PairScorer, tmp_path: Path
) -> None:
    assert run(source) == DONE
    names = [f"{kind}-{index:05d}.parquet" for kind in ("part", "rejects") for index in range(SHARDS)]
    assert sorted(content(tmp_path / "out")) == sorted([MANIFEST, *names])
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["source"] == {"kind": "listed", "fingerprint": source.fingerprint()}
    assert manifest["model_fingerprint"] == clip_scorer.fingerprint
    assert manifest["model"].endswith("clip")
    assert manifest["preprocessing"]["size"]
    assert (manifest["dtype"], manifest["batch_size"], manifest["embeddings"]) == ("float32", 2, False)
    assert manifest["score"] == "cosine similarity of image and text features, not scaled"
    assert manifest["shards"] == SHARDS
    assert manifest["finished"] == {"scored": 21, "rejected": 2, "reasons": {"missing": 1, "turns": 1}}


@pytest.mark.parametrize(("error", "least"), [(KeyboardInterrupt, 0), (SourceError, 3)])
def test_a_job_that_was_stopped_goes_on_to_the_same_bytes(
    source: ListedPairs, run: Callable, tmp_path: Path, error: type[BaseException], least: int
) -> None:
    """After an error, the shards before it are finished; an interruption does not wait for them."""
    run(source, "whole")
    source.fails_at, source.error = 3, error
    with pytest.raises(error):
        run(source)
    assert read_manifest(tmp_path / "out").finished is None
    source.fails_at = None
    before = written(tmp_path / "out")
    assert least <= len(before) <= 3
    assert run(source) == DONE
    assert before.items() <= written(tmp_path / "out").items()
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_job_that_is_done_is_left_as_it_is(source: ListedPairs, run: Callable, tmp_path: Path) -> None:
    run(source)
    before = written(tmp_path / "out", "*.*")
    assert run(source) == DONE
    assert written(tmp_path / "out", "*.*") == before


@pytest.mark.parametrize("path", [part_path, rejects_path])
def test_a_damaged_part_is_made_anew(path: Any, source: ListedPairs, run: Callable, tmp_path: Path) -> None:
    run(source)
    before, times = content(tmp_path / "out"), written(tmp_path / "out")
    file = path(tmp_path / "out", 2)
    file.write_bytes(file.read_bytes()[:200])
    assert run(source) == DONE
    assert content(tmp_path / "out") == before
    changed = dict(written(tmp_path / "out").items() - times.items())
    assert set(changed) == {part_path(tmp_path / "out", 2).name}


def test_processes_that_share_the_shards_make_the_files_of_one(
    source: ListedPairs, run: Callable, tmp_path: Path
) -> None:
    run(source, "whole")
    first = run(source, shard=(0, 2))
    assert first == ScoreSummary(scored=13, rejected=0, reasons={}, finished=False)
    assert source.was_read[SHARDS:] == [0, 2, 4]
    with pytest.raises(ScoresError, match="out is not finished"):
        read_scores(tmp_path / "out")
    second = run(source, shard=(1, 2))
    assert second == ScoreSummary(scored=8, rejected=2, reasons={"missing": 1, "turns": 1}, finished=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("share", [(2, 2), (-1, 2), (0, 0)])
def test_a_share_of_the_shards_that_is_none_is_refused(
    share: tuple[int, int], source: ListedPairs, run: Callable
) -> None:
    with pytest.raises(ScoresError, match=f"found {share[0]}/{share[1]}"):
        run(source, shard=share)


@pytest.mark.medium
def test_leftovers_of_killed_runs_are_removed_but_not_of_others_at_work(
    source: ListedPairs, run: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    names = f"from pathlib import Path; from aligngpt.leftovers import temporary_beside; out = Path({str(out)!r})"
    code = "for name in ('manifest.json', 'part-00000.parquet'): temporary_beside(out / name).touch()"
    # Leftovers of a process that has ended, and files of one that is running: this one.
    subprocess.run([sys.executable, "-c", f"{names}\n{code}"], check=True)
    dead = list(out.iterdir())
    alive = [temporary_beside(out / name) for name in (MANIFEST, "part-00000.parquet", "rejects-00001.parquet")]
    for path in alive:
        path.touch()
        os.utime(path, (time.time() - 3600,) * 2)
    run(source, shard=(0, 2))
    assert [path.exists() for path in (*dead, *alive)] == [False] * 2 + [True] * 3


def test_a_folder_of_other_scores_is_refused_and_kept(
    source: ListedPairs, run: Callable, scorer_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    run(source)
    before = content(tmp_path / "out")
    siglip = PairScorer.load(scorer_folder("siglip"), device="cpu", dtype="float32")
    half = PairScorer.load(scorer_folder("clip"), device="cpu", dtype="bfloat16")
    fewer = ListedPairs(source.rows[:-1], source.root, SHARD_SIZE)
    recut = ListedPairs(source.rows, source.root, SHARD_SIZE + 1)
    cases: list[tuple[ListedPairs, dict[str, Any], str]] = [
        (source, {"scorer": siglip}, "another model and another image processor; choose"),
        (source, {"scorer": half}, "another model and another precision; choose"),
        (source, {"batch_size": 3}, "another batch size; choose"),
        (source, {"embeddings": True}, "another embeddings setting; choose"),
        (fewer, {}, "another source of pairs and another split of the source into shards; choose"),
        (recut, {}, "another number of shards and another split of the source into shards; choose"),
    ]
    for other, options, message in cases:
        with pytest.raises(ScoresError, match=f"out holds scores of {message}"):
            run(other, **options)
    assert content(tmp_path / "out") == before


DAMAGED = [
    "",
    "{",
    "[]",
    "7",
    "{}",
    '{"finished": null}',
    '{"finished": 3}',
    '{"source": {}, "finished": null, "x": 1}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_manifest_is_an_error_and_nothing_is_lost(
    text: str, source: ListedPairs, run: Callable, tmp_path: Path
) -> None:
    run(source)
    (tmp_path / "out" / MANIFEST).write_text(text)
    before = content(tmp_path / "out")
    with pytest.raises(ScoresError, match=r"manifest\.json is damaged"):
        run(source)
    assert content(tmp_path / "out") == before


def test_parts_without_a_manifest_or_with_a_damaged_one_are_refused(
    source: ListedPairs, run: Callable, tmp_path: Path
) -> None:
    run(source)
    (tmp_path / "out" / MANIFEST).write_text("{")
    with pytest.raises(ScoresError, match=r"manifest\.json is damaged"):
        run(source)
    (tmp_path / "out" / MANIFEST).unlink()
    with pytest.raises(ScoresError, match=r"holds parts of scores but no manifest\.json"):
        run(source)
    with pytest.raises(ScoresError, match="run `aligngpt score` first"):
        read_scores(tmp_path / "out")


def test_scores_are_read_in_the_order_of_the_source(source: ListedPairs, run: Callable, tmp_path: Path) -> None:
    run(source)
    table = read_scores(tmp_path / "out")
    assert table.column_names == ["shard", "record", "id", "score"]
    scored = [index for index in range(COUNT) if index not in (7, 16)]
    assert table["id"].to_pylist() == [f"pair-{index}" for index in scored]
    places = zip(table["shard"].to_pylist(), table["record"].to_pylist(), strict=True)
    assert [shard * SHARD_SIZE + record for shard, record in places] == scored
    assert sum(batch.num_rows for batch in read_parts(tmp_path / "out")) == len(scored)
    assert next(read_parts(tmp_path / "out", ["width"])).schema.names == ["shard", "width"]


def test_too_many_rejects_end_the_job_and_are_tried_again(
    source: ListedPairs, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, "whole")
    monkeypatch.setattr(reject_share, "RECORDS_TO_JUDGE", 10)
    away = tmp_path / "away"
    away.mkdir()
    for index in {*range(2, 12)} - {7}:
        (tmp_path / f"{index}.png").rename(away / f"{index}.png")
    # Relative to all records, whatever the two remaining shards hold.
    told = r"10 of 23 records .* missing 10.*out/rejects-\*\.parquet list each reject; the first: .*/2\.png does not"
    with pytest.raises(TooManyRejects, match=told):
        run(source, max_reject_share=0.35)
    assert read_manifest(tmp_path / "out").finished is None
    for picture in away.iterdir():
        picture.rename(tmp_path / picture.name)
    assert run(source, max_reject_share=0.35) == DONE
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def spoiled(folder: Path, count: int, bad: Iterable[int], shard_size: int) -> ListedPairs:
    """Pairs, some of which have no image."""
    (folder / "pictures").mkdir()
    names = draw_pictures(folder / "pictures", count)
    for index in bad:
        names[index] = "gone.png"
    return ListedPairs(list(zip(random_captions(count), names, strict=True)), folder / "pictures", shard_size)


@pytest.mark.parametrize("share", [None, (0, 2)])
def test_a_bad_shard_at_the_beginning_does_not_end_a_job_that_is_good_as_a_whole(
    share: tuple[int, int] | None,
    run: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (job, reject_share):
        monkeypatch.setattr(module, "RECORDS_TO_JUDGE", 10, raising=False)
    source = spoiled(tmp_path, 40, range(2), 10)
    summary = run(source, max_reject_share=0.05, shard=share)
    assert (summary.rejected, summary.finished) == (2, share is None)
    told = " ".join(capsys.readouterr().err.split())
    assert "2 of the first 10 records cannot be used (missing 2), more than the 5.0%" in told
    if share:
        assert run(source, max_reject_share=0.05, shard=(1, 2)).finished


def test_the_last_process_judges_the_records_of_all(run: Callable, tmp_path: Path) -> None:
    source = spoiled(tmp_path, 20, range(4), 5)
    assert not run(source, max_reject_share=0.1, shard=(0, 2)).finished
    with pytest.raises(TooManyRejects, match="4 of 20 records"):
        run(source, max_reject_share=0.1, shard=(1, 2))
    assert read_manifest(tmp_path / "out").finished is None


@pytest.mark.parametrize(("bad", "reads"), [(range(6), 4), (range(10), 3)])
def test_where_shards_do_not_tell_how_many_they_hold_their_bytes_do(
    bad: range, reads: int, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reject_share, "RECORDS_TO_JUDGE", 5)
    source = spoiled(tmp_path, 20, bad, 5)
    shards = []
    for shard in source.shards():
        (path := tmp_path / f"{shard.index}.tar").write_bytes(bytes(5000))
        shards.append(replace(shard, records=None, path=path))
    monkeypatch.setattr(source, "shards", lambda: shards)
    if reads < len(shards):
        # 20 in total, if the last shards are no denser: known once the second is read.
        with pytest.raises(TooManyRejects, match="10 of 20 records"):
            run(source, max_reject_share=0.45)
    else:
        assert run(source, max_reject_share=0.45).finished


def test_a_hopeless_job_ends_when_few_more_shards_have_been_begun(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reject_share, "RECORDS_TO_JUDGE", 5)
    source = spoiled(tmp_path, 100, range(100), 5)
    with pytest.raises(TooManyRejects, match="10 of 100 records"):
        run(source, max_reject_share=0.05)
    # Certain after the second shard; the third is encoded while its part is written, and two tasks are open ahead.
    assert len(source.was_read) <= 5
    assert source.was_read == list(range(len(source.was_read)))


def test_a_few_rejects_at_the_beginning_wait_for_the_end(source: ListedPairs, run: Callable, tmp_path: Path) -> None:
    with pytest.raises(TooManyRejects, match=r"2 of 23 records"):
        run(source, max_reject_share=0.05)
    assert source.was_read == list(range(SHARDS))
    assert read_manifest(tmp_path / "out").finished is None
    assert run(source, max_reject_share=0.1) == DONE
    assert read_manifest(tmp_path / "out").finished == PartSummary(21, {"missing": 1, "turns": 1})


def test_a_full_disk_ends_the_job_and_the_same_command_goes_on(
    source: ListedPairs, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, "whole")
    sync = os.fsync

    def full(descriptor: int) -> None:
        if rejects_path(tmp_path / "out", 1).exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*resumes.*(part|rejects)-00001\.parquet"):
        run(source)
    monkeypatch.undo()
    assert run(source) == DONE
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_the_progress_starts_at_what_was_done(
    source: ListedPairs, run: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    source.fails_at = 2
    with pytest.raises(KeyboardInterrupt):
        run(source)
    source.fails_at = None
    run(source)
    assert "scoring pairs: 23/23" in capsys.readouterr().err


def test_a_small_source_needs_no_process() -> None:
    small, large, unknown = ([Shard(0, "all", records)] for records in (100, 10**6, None))
    assert job.worker_count(small, cpus=2) == 0
    assert job.worker_count(large, cpus=2) == job.worker_count(unknown, cpus=2) == 2
    assert job.worker_count(large, cpus=1000) == job.MAX_WORKERS


def test_a_batch_of_nothing_is_refused(source: ListedPairs, run: Callable) -> None:
    with pytest.raises(ScoresError, match="at least 1, got 0"):
        run(source, batch_size=0)


@pytest.mark.parametrize(("text", "share"), [("0/1", (0, 1)), ("3/12", (3, 12))])
def test_a_share_of_the_shards_is_written_as_a_fraction(text: str, share: tuple[int, int]) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["", "1", "4/4", "1/0", "-1/2", "1/2/3", "a/b"])
def test_other_texts_are_no_share_of_the_shards(text: str) -> None:
    with pytest.raises(ScoresError, match="such as 0/4, found"):
        parse_share(text)


def test_an_array_has_the_scores_of_the_same_lines(
    write_pairs: Callable[..., Path], run: Callable, tmp_path: Path
) -> None:
    lines = write_pairs(7)
    array = tmp_path / "pairs.json"
    array.write_text("[" + ",".join(lines.read_text(encoding="utf-8").splitlines()) + "]", encoding="utf-8")
    for source, out in ((lines, "of_lines"), (array, "of_array")):
        run(open_pairs(source, shard_size=3), out)
    of_lines, of_array = (content(tmp_path / out) for out in ("of_lines", "of_array"))
    assert of_lines.pop(MANIFEST) != of_array.pop(MANIFEST)
    assert of_lines == of_array


CHILD = """
import sys, time
from pathlib import Path
from aligngpt.data.records.pairs import open_pairs
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source

model, source, out = sys.argv[1:]
scorer = PairScorer.load(model, device="cpu", dtype="float32")
encode = scorer.pixel_features
def slowly(pixels):
    time.sleep(0.05)
    return encode(pixels)
scorer.pixel_features = slowly
score_source(open_pairs(source, shard_size=10), scorer, Path(out), batch_size=2, workers=0)
"""


@pytest.mark.medium
def test_a_killed_process_leaves_what_the_next_one_finishes(
    write_pairs: Callable[..., Path], run: Callable, scorer_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    pairs, out = write_pairs(100), tmp_path / "killed"
    run(open_pairs(pairs, shard_size=10), "whole")
    child = subprocess.Popen([sys.executable, "-c", CHILD, *map(str, (scorer_folder("clip"), pairs, out))])
    try:
        give_up = time.monotonic() + 60
        while not part_path(out, 2).exists():
            assert child.poll() is None, "the job ended before it could be killed"
            assert time.monotonic() < give_up
            time.sleep(0.01)
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
        child.wait()
    assert not part_path(out, 9).exists()
    assert read_manifest(out).finished is None
    assert run(open_pairs(pairs, shard_size=10), "killed") == ScoreSummary(100, 0, {}, finished=True)
    assert content(out) == content(tmp_path / "whole")


def test_a_file_of_pairs_is_scored(write_pairs: Callable[..., Path], run: Callable, tmp_path: Path) -> None:
    source = open_pairs(write_pairs(7, at_2={"image": "gone.png"}), shard_size=3)
    assert run(source) == ScoreSummary(scored=6, rejected=1, reasons={"missing": 1}, finished=True)
    assert read_scores(tmp_path / "out")["id"].to_pylist() == [f"pair-{index}" for index in (0, 1, 3, 4, 5, 6)]
