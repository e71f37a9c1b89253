"""Processes that score at the same time: different shares run side by side, the same share is refused."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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
import json, sys
from pathlib import Path
from aligngpt.data.records.pairs import open_pairs
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import score_source

scorer = PairScorer.load(sys.argv[1], device="cpu", dtype="float32")
encode = scorer.pixel_features

def held(pixels):
    print("at work", flush=True)
    sys.stdin.readline()
    scorer.pixel_features = encode
    return encode(pixels)

while line := sys.stdin.readline():
    source, out, share = json.loads(line)
    scorer.pixel_features = held
    score_source(open_pairs(source, shard_size=5), scorer, Path(out), workers=0, shard=share and tuple(share))
    print("finished", flush=True)
"""

Share = tuple[int, int] | None


@pytest.fixture(scope="module")
def scoring(scorer_folder: Callable[[str], Path]) -> Iterator[Callable[..., AbstractContextManager[int]]]:
    """Another process, which stops in the middle of the share it scores until the body of the `with` is done.

    There is one for all tests, as it imports torch. The body is given its process id.
    """
    command = [sys.executable, "-c", CHILD, str(scorer_folder("clip"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        orders, answers = process.stdin, process.stdout

        def order(line: str, answer: str) -> None:
            print(line, file=orders, flush=True)
            assert answers.readline() == answer + "\n"

        @contextmanager
        def scoring(source: Path, out: Path, share: Share) -> Iterator[int]:
            order(json.dumps([str(source), str(out), share]), "at work")
            try:
                yield process.pid
            finally:
                order("go on", "finished")

        yield scoring


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aligngpt.scoring.shares.PATIENCE", 0.1)


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
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("share", [None, (0, 2)])
def test_the_same_share_twice_is_refused_and_another_goes_on_beside_it(
    share: Share,
    scoring: Callable[..., AbstractContextManager[int]],
    clip_scorer: PairScorer,
    write_pairs: Callable[..., Path],
    tmp_path: Path,
) -> None:
    pairs = write_pairs(20)
    source, out = open_pairs(pairs, shard_size=5), tmp_path / "out"
    score_source(source, clip_scorer, tmp_path / "whole", workers=0)
    with scoring(pairs, out, share) as process_id:
        with pytest.raises(AlignGPTError, match=f"already being written into {out}.*process {process_id} on"):
            score_source(source, clip_scorer, out, workers=0, shard=share)
        if share:
            assert not score_source(source, clip_scorer, out, workers=0, shard=(1, 2)).finished
    # The share is free again, and everything is done.
    assert score_source(source, clip_scorer, out, workers=0, shard=share).finished
    for part in (tmp_path / "whole").glob("*.parquet"):
        assert (out / part.name).read_bytes() == part.read_bytes()


@pytest.mark.medium
@pytest.mark.usefixtures("impatient")
def test_a_share_of_another_division_is_refused_only_where_they_overlap(
    scoring: Callable[..., AbstractContextManager[int]],
    clip_scorer: PairScorer,
    write_pairs: Callable[..., Path],
    tmp_path: Path,
) -> None:
    pairs = write_pairs(20)
    source, out = open_pairs(pairs, shard_size=5), tmp_path / "out"
    with scoring(pairs, out, (0, 2)):
        for share, name in (((0, 3), "0/3"), ((2, 4), "2/4"), (None, "0/1")):
            with pytest.raises(AlignGPTError, match=f"the share {name} of these scores overlaps the share 0/2.*same n"):
                score_source(source, clip_scorer, out, workers=0, shard=share)
        # Shards 1 and 3 are in neither 0/2 nor any share of it.
        assert not score_source(source, clip_scorer, out, workers=0, shard=(1, 4)).finished
    # An interrupted or finished share may be resumed with another division.
    assert score_source(source, clip_scorer, out, workers=0, shard=(0, 3)).finished
