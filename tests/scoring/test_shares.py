"""Processes that score at the same time: different shares run side by side, the same share is refused."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from aligngpt.data.records.pairs import open_pairs
from aligngpt.errors import AlignGPTError
from aligngpt.locks import LOCK_FILE
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source
from aligngpt.scoring.shares import owned_share

CHILD = """
import sys, time
from pathlib import Path
from aligngpt.data.records.pairs import open_pairs
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source

model, source, out, index, count = sys.argv[1:]
scorer = PairScorer.load(model, device="cpu", dtype="float32")
encode = scorer.pixel_features
def held(pixels):
    (Path(out) / f"at-work-{index}").touch()
    while not (Path(out) / "go").exists():
        time.sleep(0.01)
    return encode(pixels)
scorer.pixel_features = held
share = None if count == "1" else (int(index), int(count))
score_source(open_pairs(source, shard_size=5), scorer, Path(out), workers=0, shard=share)
"""


@pytest.fixture
def start(scorer_folder: Callable[[str], Path], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a process that scores a share and waits until it is running; it continues once the file `go` exists."""
    started: list[subprocess.Popen] = []

    def call(source: Path, index: int, count: int) -> subprocess.Popen:
        arguments = [scorer_folder("clip"), source, tmp_path / "out", index, count]
        process = subprocess.Popen([sys.executable, "-c", CHILD, *map(str, arguments)])
        started.append(process)
        give_up = time.monotonic() + 120
        while not (tmp_path / "out" / f"at-work-{index}").exists():
            assert process.poll() is None and time.monotonic() < give_up
            time.sleep(0.02)
        return process

    yield call
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("held", [".share-1-of-8", ".share-0-of-1"])
def test_a_lock_that_another_process_holds_for_a_moment_is_waited_for(held: str, tmp_path: Path) -> None:
    (tmp_path / held).mkdir()
    lock = FileLock(tmp_path / held / LOCK_FILE, thread_local=False)
    lock.acquire()
    release = threading.Timer(0.3, lock.release)
    release.start()
    with owned_share(tmp_path, (1, 8)):
        assert not lock.is_locked
    release.join()


@pytest.mark.medium
@pytest.mark.parametrize("count", [1, 2])
def test_the_same_share_twice_is_refused_and_another_goes_on_beside_it(
    count: int,
    start: Callable[..., subprocess.Popen],
    clip_scorer: PairScorer,
    write_pairs: Callable[..., Path],
    tmp_path: Path,
) -> None:
    pairs = write_pairs(20)
    source, out = open_pairs(pairs, shard_size=5), tmp_path / "out"
    score_source(source, clip_scorer, tmp_path / "whole", workers=0)
    first = start(pairs, 0, count)
    share = None if count == 1 else (0, 2)
    with pytest.raises(AlignGPTError, match=f"already being written into {out}.*process {first.pid} on"):
        score_source(source, clip_scorer, out, workers=0, shard=share)
    if count == 2:
        assert not score_source(source, clip_scorer, out, workers=0, shard=(1, 2)).finished
    (out / "go").touch()
    assert first.wait() == 0
    # The share is free again, and everything is done.
    assert score_source(source, clip_scorer, out, workers=0, shard=share).finished
    for part in (tmp_path / "whole").glob("*.parquet"):
        assert (out / part.name).read_bytes() == part.read_bytes()


@pytest.mark.medium
def test_a_share_of_another_division_is_refused_only_where_they_overlap(
    start: Callable[..., subprocess.Popen],
    clip_scorer: PairScorer,
    write_pairs: Callable[..., Path],
    tmp_path: Path,
) -> None:
    pairs = write_pairs(20)
    source, out = open_pairs(pairs, shard_size=5), tmp_path / "out"
    first = start(pairs, 0, 2)
    for share, name in (((0, 3), "0/3"), ((2, 4), "2/4"), (None, "0/1")):
        with pytest.raises(AlignGPTError, match=f"the share {name} of these scores overlaps the share 0/2.*same n"):
            score_source(source, clip_scorer, out, workers=0, shard=share)
    # Shards 1 and 3 are in neither 0/2 nor any share of it.
    assert not score_source(source, clip_scorer, out, workers=0, shard=(1, 4)).finished
    (out / "go").touch()
    assert first.wait() == 0
    # An interrupted or finished share may be resumed with another division.
    assert score_source(source, clip_scorer, out, workers=0, shard=(0, 3)).finished
