"""Scoring a source of pairs with Ray: actors on any number of nodes score the shards that `score_source` would.

What is done is what has its part in the folder; nothing else is kept of a job. So a shard whose actor is lost is simply
given to another, and either engine can go on with what the other left.
"""

import os
import platform
import signal
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from aligngpt.data.records.pairs import PairSource
from aligngpt.data.sources.base import Shard
from aligngpt.leftovers import remove_leftovers
from aligngpt.progress import Meter, console
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.job import FEW_RECORDS, MAX_WORKERS, ScoreSummary
from aligngpt.scoring.manifest import Manifest, claim, finish
from aligngpt.scoring.picture_workers import PictureWorkers, WorkerError
from aligngpt.scoring.pipeline import score_shard
from aligngpt.scoring.ray.cluster import RayEngineError, Room, connected, last_line, room_for, shared_marker
from aligngpt.scoring.reject_share import RejectLimit, check_outcome
from aligngpt.scoring.resuming import is_usable, kept_parts
from aligngpt.scoring.score_files import PartSummary, ScoresError, part_path, part_summary
from aligngpt.scoring.shares import owned_share

RETRIES = 3
"""How often a shard is given to another actor after it was lost with one, and a model loaded again likewise."""

SECONDS_BETWEEN_SIGNS = 10.0
"""How long nothing may end before the progress is shown again all the same."""


def score_on_ray(
    source: PairSource,
    load_scorer: Callable[[], PairScorer],
    out: Path,
    *,
    address: str | None = None,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    embeddings: bool = False,
    max_reject_share: float = 0.05,
) -> ScoreSummary:
    """Score every pair of a source on a pool of Ray actors, or go on where either engine was stopped.

    Writes what `score_source` writes; to the same bytes, where torch computes on the same kind of device and with as
    many threads. An actor that dies is replaced and its shard given to another; a shard that is lost again and again is
    passed over, and is an error when all others are done.

    Args:
        source: see `open_pairs`; every node must find its files under the same paths.
        load_scorer: makes the model, once in each actor; picklable, such as `partial(PairScorer.load, "folder")`.
        out: folder of the scores, which every node must see.
        address: of a Ray cluster, `auto` for the one this machine belongs to; None starts Ray on this machine for as
            long as the job takes. A Ray that this process is connected to already is used in either case.
        actors: how many; None for one a GPU or, where there is none, one for every 2 CPUs.
        gpus_per_actor: may be a fraction; None for 1, or 0 where there is no GPU.
        batch_size: distinct images, or distinct captions, encoded together; at least 1.
        workers: processes an actor has to open pictures; 0 for a thread, None for its share of the CPUs.
        embeddings: also keep the features of images and captions.
        max_reject_share: share of the records, 0…1, that may be rejected.

    Raises:
        RayEngineError: Ray is missing, has too little room, or does not start; a node does not see the files; actors
            load different models; or a shard was lost too often.
        ScoresError, ScorerError, TooManyRejects, OSError: as `score_source`.
    """
    if batch_size < 1:
        raise ScoresError(f"the batch size must be at least 1, got {batch_size}")
    shards = source.shards()
    # Actors have another working directory.
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with owned_share(out, None), connected(address) as ray, shared_marker(out) as marker:
        room = room_for([node["Resources"] for node in ray.nodes() if node["Alive"]], actors, gpus_per_actor)
        task = _Task(
            source=source,
            load_scorer=load_scorer,
            out=out,
            batch_size=batch_size,
            workers=_worker_count(shards, room.cpus) if workers is None else workers,
            embeddings=embeddings,
            may_all_be_missing=max_reject_share >= 1,
            threads=max(1, room.cpus),
            folder=Path.cwd(),
            seen=[marker, *{shard.path for shard in shards[:1] if shard.path is not None}],
        )
        with _Pool(ray, task, room) as pool:
            manifest = claim(out, pool.first_manifest())
            total = _score(pool, source, out, manifest, max_reject_share)
        check_outcome(out, total, max_reject_share, source.place)
        if manifest.finished != total:
            finish(out, manifest, total, source)
    return ScoreSummary(total.scored, total.rejected, dict(total.reasons), finished=True)


@dataclass(frozen=True)
class _Task:
    """What an actor is told once.

    Attributes:
        source, load_scorer, out, batch_size, workers, embeddings: see `score_on_ray`.
        may_all_be_missing: see `score_shard`.
        threads: for torch.
        folder: what relative paths start from.
        seen: files that must be visible from every node.
    """

    source: PairSource
    load_scorer: Callable[[], PairScorer]
    out: Path
    batch_size: int
    workers: int
    embeddings: bool
    may_all_be_missing: bool
    threads: int
    folder: Path
    seen: Sequence[Path]


class _Actor:
    """A process that Ray runs on some node: holds the model and scores one shard after the other."""

    def start(self, task: _Task) -> str:
        """Load the model; returns its fingerprint."""
        # Ctrl-C may reach every process of the terminal; who started the actors ends them.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with suppress(OSError):
            os.chdir(task.folder)
        if unseen := [path for path in task.seen if not path.exists()]:
            raise RayEngineError(
                f"the node {platform.node()} does not see {unseen[0]}; put the data and the folder of the scores "
                "on storage that all nodes mount at the same path"
            )
        torch.set_num_threads(task.threads)
        self._task = task
        self._scorer = task.load_scorer()
        self._pictures = PictureWorkers(self._scorer, task.workers)
        return self._scorer.fingerprint

    def manifest(self) -> Manifest:
        task = self._task
        return Manifest.of(task.source, self._scorer, batch_size=task.batch_size, embeddings=task.embeddings)

    def score(self, shard: Shard) -> PartSummary:
        task = self._task
        return score_shard(
            task.source,
            shard,
            self._scorer,
            task.out,
            batch_size=task.batch_size,
            workers=self._pictures,
            embeddings=task.embeddings,
            may_all_be_missing=task.may_all_be_missing,
        )


class _Ended(NamedTuple):
    """A shard that an actor is done with; `summary` is None when the actor died, and `reason` says how."""

    shard: Shard
    summary: PartSummary | None
    reason: str = ""


class _Pool:
    """The actors; a context manager that ends them.

    Attributes:
        size: how many there are, also those that wait for their place or load the model.
        idle: how many wait for a shard.
        scoring: how many are at one.
    """

    def __init__(self, ray: Any, task: _Task, room: Room) -> None:
        self.room = room
        self._ray = ray
        self._task = ray.put(task)
        # Ray itself must not start one again: it would have no model.
        self._make = ray.remote(_Actor).options(num_cpus=room.cpus, num_gpus=room.gpus, max_restarts=0).remote
        self._actors: list[Any] = []
        self._idle: list[Any] = []
        self._calls: dict[Any, tuple[Any, Shard | None]] = {}
        self._fingerprint: str | None = None
        self._lost_starting = 0

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        while self._actors:
            self._ray.kill(self._actors.pop())

    @property
    def size(self) -> int:
        return len(self._actors)

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def scoring(self) -> int:
        return sum(shard is not None for _, shard in self._calls.values())

    def add(self) -> None:
        """Begin to start one more actor."""
        actor = self._make()
        self._actors.append(actor)
        self._calls[actor.start.remote(self._task)] = (actor, None)

    def give(self, shard: Shard) -> None:
        """Let an idle actor score a shard."""
        actor = self._idle.pop()
        self._calls[actor.score.remote(shard)] = (actor, shard)

    def first_manifest(self) -> Manifest:
        """Start one actor, so that a wrong model fails once, and ask it what the scores depend on."""
        told = False
        while not self._idle:
            if not self._calls:
                self.add()
            self.wait()
            if self._calls and not told:
                console.print("waiting for the first actor: Ray starts it as soon as the cluster has room for it")
                told = True
        try:
            return self._ray.get(self._idle[0].manifest.remote())
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise RayEngineError(
                f"the first actor was lost ({last_line(error)}); run the same command again"
            ) from error

    def wait(self) -> list[_Ended]:
        """Wait until an actor has started or is done with its shard, or for some seconds; returns the shards.

        Raises:
            RayEngineError: too many actors died while they started, or one has loaded another model.
            Exception: what scoring a shard raised.
        """
        done, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=SECONDS_BETWEEN_SIGNS)
        ended = []
        for call in done:
            actor, shard = self._calls.pop(call)
            try:
                result = self._result(call)
            except (WorkerError, self._ray.exceptions.RayError) as error:
                # It may be alive after all: cut off by the network, or without those that open its pictures.
                self._actors.remove(actor)
                self._ray.kill(actor)
                if shard is None:
                    self._count_lost_start(error)
                else:
                    ended.append(_Ended(shard, None, last_line(error)))
                continue
            self._idle.append(actor)
            if shard is None:
                self._check_model(result)
            else:
                ended.append(_Ended(shard, result))
        return ended

    def _result(self, call: Any) -> Any:
        try:
            return self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error

    def _count_lost_start(self, error: Exception) -> None:
        self._lost_starting += 1
        if self._lost_starting > RETRIES:
            raise RayEngineError(
                f"{self._lost_starting} actors ended while they loaded the model ({last_line(error)}); most often the "
                "node ran out of memory: use fewer actors, or a smaller model"
            ) from error

    def _check_model(self, fingerprint: str) -> None:
        self._lost_starting = 0
        self._fingerprint = self._fingerprint or fingerprint
        if fingerprint != self._fingerprint:
            raise RayEngineError(
                "an actor has loaded another model than the first did, or in another precision; name the precision "
                "(float32 or bfloat16) instead of auto, and let all nodes read the model from the same folder"
            )


def _score(pool: _Pool, source: PairSource, out: Path, manifest: Manifest, max_share: float) -> PartSummary:
    """Score the shards that have no part; returns what became of the records of all shards."""
    shards = source.shards()
    done = kept_parts(source, out, shards, finished=manifest.finished is not None, max_share=max_share)
    todo = deque(shard for shard in shards if shard.index not in done)
    total = sum(done.values(), PartSummary())
    limit = RejectLimit(out, shards, max_share)
    limit.add(done)
    lost: Counter[Shard] = Counter()
    reasons: dict[Shard, str] = {}
    if todo:
        with Meter("scoring pairs", _records(todo, total.records), initial=total.records, unit="pairs") as meter:
            while todo or pool.scoring:
                while pool.size < min(pool.room.actors, len(todo) + pool.scoring):
                    pool.add()
                while todo and pool.idle:
                    pool.give(todo.popleft())
                before = total.records
                for shard, result, reason in pool.wait():
                    # The actor may have died between writing the part and saying so.
                    summary = part_summary(out, shard.index) if result is None else result
                    if summary is not None and (result is not None or is_usable(summary, max_share)):
                        total += summary
                        limit.add({shard.index: summary})
                        continue
                    remove_leftovers(part_path(out, shard.index))
                    lost[shard] += 1
                    reasons[shard] = reason
                    if lost[shard] <= RETRIES:
                        # Behind the others, which it must not keep from being done.
                        todo.append(shard)
                limit.check_certain()
                meter.advance(total.records - before, f"{pool.scoring} of {pool.room.actors} actors at work")
    _check_lost({shard: reasons[shard] for shard, times in lost.items() if times > RETRIES})
    return total


def _check_lost(reasons: Mapping[Shard, str]) -> None:
    if reasons:
        names = ", ".join(shard.name for shard in list(reasons)[:3]) + (", …" if len(reasons) > 3 else "")
        raise RayEngineError(
            f"{len(reasons)} shards were given up, each after {1 + RETRIES} actors had ended over it: {names} "
            f"({next(iter(reasons.values()))}). Most often a node ran out of memory: use fewer workers, a smaller "
            "batch size or smaller shards. All other parts are there; run the same command again and it goes on"
        )


def _records(shards: Sequence[Shard], others: int = 0) -> int | None:
    """How many records the shards have together with `others`, where all of them tell."""
    counts = [shard.records for shard in shards]
    return None if None in counts else sum((count for count in counts if count is not None), others)


def _worker_count(shards: Sequence[Shard], cpus: int) -> int:
    """How many processes open an actor's pictures when nobody says; a thread is enough for a small source."""
    records = _records(shards)
    return 0 if records is not None and records < FEW_RECORDS else min(MAX_WORKERS, cpus)
