"""The Ray engine writes the same files as the one-machine job, whichever processes die."""

import importlib
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import listed_pairs
import pyarrow.parquet as pq
import pytest
import torch
from listed_pairs import ListedPairs, draw_pictures, random_captions
from PIL import Image

from aligngpt.data.records.pairs import Pair, Unusable
from aligngpt.data.rejects import TooManyRejects
from aligngpt.data.sources.base import Shard
from aligngpt.scoring.encoders import PairScorer, ScorerError
from aligngpt.scoring.job import ScoreSummary, score_source
from aligngpt.scoring.manifest import read_manifest
from aligngpt.scoring.picture_workers import WorkerError
from aligngpt.scoring.ray import engine as ray_engine
from aligngpt.scoring.ray.cluster import MARKER, OBJECT_STORE, RayEngineError, connected, room_for
from aligngpt.scoring.ray.engine import RETRIES, score_on_ray
from aligngpt.scoring.score_files import PartSummary, ScoresError, part_path

COUNT, SHARD_SIZE, SHARDS = 23, 5, 5
DONE = ScoreSummary(scored=COUNT - 2, rejected=2, reasons={"missing": 1, "turns": 1}, finished=True)


class DeadlyPairs(ListedPairs):
    """Pairs whose shard `index` kills the process that reads it, as long as the file `kill-{index}` is in the root.

    The shards read are logged in the file `read`, one per line; the file `once-{index}` kills only one reader.
    """

    def read(self, shard: Shard) -> Iterator[Pair | Unusable]:
        with (self.root / "read").open("a") as file:
            file.write(f"{shard.index}\n")
        for number, item in enumerate(super().read(shard)):
            once = self.root / f"once-{shard.index}"
            if number == 2 and (once.exists() or (self.root / f"kill-{shard.index}").exists()):
                once.unlink(missing_ok=True)
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    def reads(self) -> Counter[int]:
        """How often each shard was read since the last call."""
        counts = Counter(map(int, (self.root / "read").read_text().split()))
        (self.root / "read").unlink()
        return counts


def load(folder: Path) -> PairScorer:
    return PairScorer.load(folder, device="cpu", dtype="float32")


class InlineRay:
    """The parts of Ray that the engine uses, in this process: a call runs when its result is requested.

    Attributes:
        connected: whether a Ray was started or joined.
        options: the arguments it was started with.
        made: number of actors created.
        killed: the actors that were killed.
    """

    class RayError(Exception):
        """Like Ray's own: an actor died."""

    class RayTaskError(RayError):
        """Like Ray's own: the code in the actor raised `cause`."""

        def __init__(self, cause: Exception) -> None:
            self.cause = cause

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self) -> None:
        self.connected = True
        self.options: dict[str, Any] = {}
        self.made = 0
        self.killed: list[object] = []

    def is_initialized(self) -> bool:
        return self.connected

    def init(self, **options: Any) -> None:
        if options["address"] == "auto":
            raise ConnectionError("nothing is running")
        self.connected, self.options = True, options

    def shutdown(self) -> None:
        self.connected = False

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def put(self, value: object) -> object:
        return value

    def remote(self, kind: type) -> Any:
        def make() -> Any:
            self.made += 1
            actor = kind()
            names = ("start", "manifest", "score")
            return SimpleNamespace(**{n: SimpleNamespace(remote=partial(partial, getattr(actor, n))) for n in names})

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    def wait(self, calls: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        return calls[:1], calls[1:]

    def get(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self.RayError:
            raise
        except Exception as error:
            raise self.RayTaskError(error) from error

    def kill(self, actor: object) -> None:
        self.killed.append(actor)


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> Iterator[InlineRay]:
    """A stand-in for Ray, already connected when the engine starts."""
    handler, threads = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    stand_in = InlineRay()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", stand_in)
        yield stand_in
    signal.signal(signal.SIGINT, handler)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray on this machine with two CPUs, already connected when the engine starts."""
    module = pytest.importorskip("ray")
    # One thread for each of two actors, the same as for the one-machine job here.
    options = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    module.init(address="local", log_to_driver=False, logging_level=logging.ERROR, **options)
    # The actors cannot import modules from the tests.
    for one in (sys.modules[__name__], listed_pairs):
        module.cloudpickle.register_pickle_by_value(one)
    yield module
    for one in (sys.modules[__name__], listed_pairs):
        module.cloudpickle.unregister_pickle_by_value(one)
    module.shutdown()


@pytest.fixture
def source(tmp_path: Path) -> DeadlyPairs:
    """23 records in five shards; number 7 has no picture, number 16 no caption."""
    rows: list[tuple[str | None, str]] = list(zip(random_captions(COUNT), draw_pictures(tmp_path, COUNT), strict=True))
    rows[7], rows[16] = ("a red circle", "gone.png"), (None, "16.png")
    return DeadlyPairs(rows, tmp_path, SHARD_SIZE)


@pytest.fixture
def run(scorer_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., ScoreSummary]:
    """Score on two actors, with two images or captions per batch, allowing most records to be rejected."""

    def call(source: ListedPairs, out: str = "out", **options: Any) -> ScoreSummary:
        settings = {
            "load_scorer": partial(load, scorer_folder("clip")),
            "actors": 2,
            "gpus_per_actor": 0,
            "batch_size": 2,
            "max_reject_share": 0.9,
        }
        settings |= options
        return score_on_ray(source, settings.pop("load_scorer"), tmp_path / out, **settings)

    return call


@pytest.fixture
def one_machine(source: DeadlyPairs, clip_scorer: PairScorer, tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """The output of the one-machine job for the same source."""

    def call(out: str = "whole", **options: Any) -> dict[str, bytes]:
        settings = {"batch_size": 2, "max_reject_share": 0.9, "workers": 0} | options
        score_source(source, clip_scorer, tmp_path / out, **settings)
        source.reads()
        return content(tmp_path / out)

    return call


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.medium
def test_an_actor_that_is_killed_loses_nothing(
    ray: Any, source: DeadlyPairs, run: Callable, one_machine: Callable, tmp_path: Path
) -> None:
    whole = one_machine()
    (tmp_path / "once-1").touch()
    assert run(source) == DONE
    assert source.reads() == dict.fromkeys(range(SHARDS), 1) | {1: 2}
    assert content(tmp_path / "out") == whole


@pytest.mark.slow
def test_a_shard_that_always_kills_is_named_and_all_others_are_done(
    ray: Any,
    source: DeadlyPairs,
    run: Callable,
    one_machine: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = one_machine()
    monkeypatch.setattr(ray_engine, "RETRIES", 0)
    one_machine("out", shard=(0, 2))
    (tmp_path / "kill-1").touch()
    with pytest.raises(RayEngineError, match=r"1 shards .*: rows\[5:\] \(.*worker process has died\).*to resume"):
        run(source)
    # Finished shards are read too, to check that their images are unchanged.
    assert source.reads() == dict.fromkeys(range(SHARDS), 1)
    assert content(tmp_path / "out").keys() == whole.keys() - {"part-00001.parquet", "rejects-00001.parquet"}
    assert read_manifest(tmp_path / "out").finished is None
    (tmp_path / "kill-1").unlink()
    assert run(source) == DONE
    assert source.reads() == dict.fromkeys(range(SHARDS), 1)
    assert content(tmp_path / "out") == whole


@pytest.mark.parametrize("options", [{}, {"embeddings": True}])
def test_the_files_are_those_of_the_one_machine_job(
    options: dict[str, Any],
    inline: InlineRay,
    source: DeadlyPairs,
    run: Callable,
    one_machine: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = one_machine(**options)
    assert run(source, **options) == DONE
    assert inline.made == len(inline.killed) == 2
    assert source.reads() == dict.fromkeys(range(SHARDS), 1)
    assert content(tmp_path / "out") == whole
    assert "scoring pairs: 23/23" in capsys.readouterr().err


def test_a_job_that_is_done_is_left_as_it_is(
    inline: InlineRay, source: DeadlyPairs, run: Callable, tmp_path: Path
) -> None:
    run(source)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[!.]*")}
    assert run(source) == DONE
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[!.]*")} == times


def test_an_interrupt_ends_the_actors_and_the_one_machine_job_goes_on(
    inline: InlineRay, source: DeadlyPairs, run: Callable, one_machine: Callable, tmp_path: Path
) -> None:
    whole = one_machine()
    source.fails_at = 3
    with pytest.raises(KeyboardInterrupt):
        run(source)
    assert inline.made == len(inline.killed) == 2
    source.fails_at = None
    assert not list((tmp_path / "out").glob(f"{MARKER}*"))
    assert source.reads() == {0: 1, 1: 1, 2: 1, 3: 1}
    assert one_machine("out") == whole


def test_several_models_give_the_files_of_one_machine(
    inline: InlineRay,
    source: DeadlyPairs,
    run: Callable,
    one_machine: Callable,
    scorer_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = scorer_folder("siglip")
    whole = one_machine(others=[PairScorer.load(folder, device="cpu", dtype="float32")])
    assert run(source, load_others=[partial(load, folder)]) == DONE
    assert content(tmp_path / "out") == whole
    assert "score_siglip" in pq.read_schema(tmp_path / "out" / "part-00000.parquet").names


def test_a_shard_that_was_written_by_an_actor_that_died_is_done(
    inline: InlineRay, source: DeadlyPairs, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(actor: ray_engine._Actor, shard: Shard, *options: Any) -> PartSummary:
        summary = scores(actor, shard, *options)
        if shard.index == 2:
            raise InlineRay.RayError("The actor died.")
        return summary

    scores = ray_engine._Actor.score
    monkeypatch.setattr(ray_engine._Actor, "score", score)
    assert run(source) == DONE
    assert source.reads() == dict.fromkeys(range(SHARDS), 1)
    assert inline.made == 3


@pytest.mark.parametrize("deaths", [1, RETRIES + 1])
def test_an_old_part_never_counts_as_what_a_dead_actor_was_to_write(
    inline: InlineRay,
    source: DeadlyPairs,
    run: Callable,
    one_machine: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deaths: int,
) -> None:
    run(source)
    Image.new("RGB", (40, 36), "red").save(tmp_path / "11.png")
    died: list[int] = []

    def score(actor: ray_engine._Actor, shard: Shard, *options: Any) -> PartSummary:
        if shard.index == 2 and len(died) < deaths:
            died.append(shard.index)
            raise InlineRay.RayError("The actor died.")
        return scores(actor, shard, *options)

    scores = ray_engine._Actor.score
    monkeypatch.setattr(ray_engine._Actor, "score", score)
    if deaths > RETRIES:
        with pytest.raises(RayEngineError, match="1 shards were given up"):
            run(source)
        assert not part_path(tmp_path / "out", 2).exists() and part_path(tmp_path / "out", 1).exists()
    assert run(source) == DONE
    assert content(tmp_path / "out") == one_machine()


def test_a_shard_is_given_up_with_its_fourth_actor(
    inline: InlineRay, source: DeadlyPairs, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(actor: ray_engine._Actor, shard: Shard, *options: Any) -> PartSummary:
        if shard.index == 1:
            raise WorkerError("a process that opens pictures ended")
        return scores(actor, shard, *options)

    scores = ray_engine._Actor.score
    monkeypatch.setattr(ray_engine._Actor, "score", score)
    with pytest.raises(RayEngineError, match=r"after 4 actors had died while scoring it: rows\[5:\] \(a process"):
        run(source)
    assert source.reads() == {0: 1, 2: 1, 3: 1, 4: 1}
    assert inline.made == len(inline.killed)


def test_a_folder_of_other_scores_or_too_many_rejects_end_the_job_as_on_one_machine(
    inline: InlineRay, source: DeadlyPairs, run: Callable, one_machine: Callable, tmp_path: Path
) -> None:
    one_machine("out", shard=(0, 2))
    with pytest.raises(ScoresError, match="out holds scores of another batch size; choose"):
        run(source, batch_size=3)
    with pytest.raises(TooManyRejects, match=r"2 of 23 records .*out/rejects-\*\.parquet list each"):
        run(source, max_reject_share=0.05)
    assert read_manifest(tmp_path / "out").finished is None
    assert not list((tmp_path / "out").glob(f"{MARKER}*"))


def test_bad_records_at_the_beginning_do_not_end_a_job_that_is_good_as_a_whole(
    inline: InlineRay, source: DeadlyPairs, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ray_engine, importlib.import_module("aligngpt.scoring.job")):
        monkeypatch.setattr(module, "RECORDS_TO_JUDGE", 10, raising=False)
    rows = [*source.rows[:1], (None, "1.png"), (None, "2.png"), *source.rows[3:]]
    assert run(DeadlyPairs(rows, source.root, SHARD_SIZE), max_reject_share=0.2).rejected == 4


def test_a_source_that_changes_while_it_is_scored_is_not_finished(
    inline: InlineRay, source: DeadlyPairs, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter(["as it was", "as it is"])
    monkeypatch.setattr(source, "fingerprint", lambda: next(told))
    with pytest.raises(ScoresError, match=r"has changed since .*out was begun"):
        run(source)
    assert read_manifest(tmp_path / "out").finished is None


def test_a_source_of_which_nothing_is_scored_is_an_error(
    inline: InlineRay, source: DeadlyPairs, run: Callable, tmp_path: Path
) -> None:
    rows = [(None, name) for _, name in source.rows]
    with pytest.raises(ScoresError, match="nothing could be scored, found turns 23"):
        run(DeadlyPairs(rows, source.root, SHARD_SIZE), max_reject_share=1)
    assert read_manifest(tmp_path / "out").finished is None


def test_what_goes_wrong_in_an_actor_is_told_as_it_is(
    inline: InlineRay, source: DeadlyPairs, run: Callable, tmp_path: Path
) -> None:
    with pytest.raises(ScorerError, match="nowhere cannot be loaded"):
        run(source, load_scorer=partial(load, tmp_path / "nowhere"))
    assert inline.made == len(inline.killed) == 1
    assert content(tmp_path / "out") == {}


@pytest.mark.parametrize("error", [InlineRay.RayError("The actor died.\nIts process ended."), WorkerError("no memory")])
def test_actors_that_die_over_the_model_end_the_job(
    error: Exception, inline: InlineRay, source: DeadlyPairs, run: Callable
) -> None:
    def load_and_die() -> PairScorer:
        raise error

    with pytest.raises(RayEngineError, match=r"4 actors died while loading the model \((Its process|no memory)"):
        run(source, load_scorer=load_and_die)
    assert inline.made == len(inline.killed) == 1 + RETRIES


def test_actors_with_different_models_are_refused(
    inline: InlineRay, source: DeadlyPairs, run: Callable, scorer_folder: Callable[[str], Path]
) -> None:
    kinds = iter(["clip", "siglip"])
    with pytest.raises(RayEngineError, match="a different model than the first actor"):
        run(source, load_scorer=lambda: load(scorer_folder(next(kinds))))


def test_a_node_that_does_not_see_the_files_is_named(
    inline: InlineRay, source: DeadlyPairs, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "shards", lambda: [Shard(0, "rows", SHARD_SIZE, path=tmp_path / "away.jsonl")])
    with pytest.raises(RayEngineError, match=r"does not see .*away\.jsonl; put the data .* on storage that all nodes"):
        run(source)


def test_a_ray_of_our_own_lasts_as_long_as_the_job(inline: InlineRay) -> None:
    inline.connected = False
    with connected(None):
        assert inline.connected
    assert not inline.connected
    assert (inline.options["address"], inline.options["include_dashboard"]) == ("local", False)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_cluster_that_is_not_there_is_named(inline: InlineRay) -> None:
    inline.connected = False
    with (
        pytest.raises(RayEngineError, match=r"no Ray at auto: nothing is running\. Start a cluster"),
        connected("auto"),
    ):
        pass


def test_without_ray_the_error_says_how_to_get_it(
    source: DeadlyPairs, clip_scorer: PairScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayEngineError, match=r"pip install 'aligngpt\[ray\]'"):
        score_on_ray(source, lambda: clip_scorer, tmp_path / "out")


def test_a_batch_of_nothing_is_refused(source: DeadlyPairs, clip_scorer: PairScorer, tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match="at least 1, got 0"):
        score_on_ray(source, lambda: clip_scorer, tmp_path / "out", batch_size=0)


@pytest.mark.parametrize(
    ("nodes", "actors", "gpus", "expected"),
    [
        ([{"CPU": 7.0}, {"CPU": 7.0}], None, None, (6, 2, 0)),
        ([{"CPU": 1.0}], None, None, (1, 1, 0)),
        ([{"CPU": 7.0}, {"CPU": 3.0}], 2, None, (2, 3, 0)),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 32.0}], None, None, (8, 8, 1)),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}], None, 0.5, (24, 2, 0.5)),
        ([{"CPU": 64.0, "GPU": 8.0}], 3, None, (3, 8, 1)),
        ([{"CPU": 64.0, "GPU": 8.0}], 4, 0, (4, 16, 0)),
        ([{"CPU": 2.0, "GPU": 4.0}], None, None, (4, 0, 1)),
    ],
)
def test_every_actor_finds_its_place(
    nodes: list[dict[str, float]], actors: int | None, gpus: float | None, expected: tuple[int, int, float]
) -> None:
    assert room_for(nodes, actors, gpus) == expected


@pytest.mark.parametrize(("actors", "gpus"), [(0, None), (9, None), (None, 16), (5, 2)])
def test_more_actors_than_there_is_room_for_are_refused(actors: int | None, gpus: float | None) -> None:
    with pytest.raises(RayEngineError, match="the nodes have room for"):
        room_for([{"CPU": 64.0, "GPU": 8.0}], actors, gpus)
