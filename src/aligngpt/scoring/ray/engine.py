"""Scores a source of pairs with Ray: actors on any number of nodes score the same shards as `score_source`.

A shard is done when its part is in the folder; a job has no other state. So a shard whose actor is lost is simply given
to another one, and either engine can resume a job of the other.
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
from aligngpt.progress import Meter, say
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.finishing import finish_job
from aligngpt.scoring.job import ScoreSummary, records_in, worker_count
from aligngpt.scoring.manifest import Manifest, before_rescoring, claim
from aligngpt.scoring.picture_workers import PictureWorkers, WorkerError
from aligngpt.scoring.pipeline import score_shard
from aligngpt.scoring.ray.cluster import RayEngineError, Room, connected, last_line, room_for, shared_marker
from aligngpt.scoring.reject_share import RejectLimit
from aligngpt.scoring.resuming import is_usable, kept_parts
from aligngpt.scoring.score_files import PartSummary, ScoresError, part_path, part_summary
from aligngpt.scoring.shares import owned_share

RETRIES = 3
"""How often a shard is retried on another actor after its actor was lost, and how often loading the model is."""

SECONDS_BETWEEN_SIGNS = 10.0
"""Interval after which the progress is shown again even if nothing has finished."""


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
    load_others: Sequence[Callable[[], PairScorer]] = (),
) -> ScoreSummary:
    """Score every pair of a source on a pool of Ray actors, or resume an interrupted job of either engine.

    Writes the same files as `score_source`, identical to the byte if torch runs on the same kind of device with the
    same number of threads. An actor that dies is replaced and its shard given to another one. A shard that is lost too
    often is skipped, and reported as an error when all others are done.

    Args:
        source: see `open_pairs`; every node must find its files under the same paths.
        load_scorer: loads the model, once in each actor; picklable, such as `partial(PairScorer.load, "folder")`.
        out: folder of the scores, which every node must see.
        address: address of a Ray cluster, `auto` for the one this machine belongs to; None starts Ray on this machine
            for the duration of the job. If this process is already connected to a Ray, that one is used instead.
        actors: number of actors; None for one per GPU or, if there is no GPU, one per 2 CPUs.
        gpus_per_actor: may be a fraction; None for 1, or 0 if there is no GPU.
        batch_size: distinct images, or distinct captions, encoded together; at least 1.
        workers: number of processes per actor that open images; 0 for a thread, None for the actor's share of the CPUs.
        embeddings: also store the image and caption features.
        max_reject_share: maximum share of rejected records, 0…1.
        load_others: load further models, as `load_scorer`; see `score_source`.

    Raises:
        RayEngineError: Ray is missing, has too few resources, or does not start; a node does not see the files; actors
            load different models; or a shard was lost too often.
        ScoresError, ScorerError, TooManyRejects, OSError: see `score_source`.
    """
    if batch_size < 1:
        raise ScoresError(f"the batch size must be at least 1, got {batch_size}")
    shards = source.shards()
    # Actors start in another working directory.
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with owned_share(out, None), connected(address) as ray, shared_marker(out) as marker:
        room = room_for([node["Resources"] for node in ray.nodes() if node["Alive"]], actors, gpus_per_actor)
        task = _Task(
            source=source,
            load_scorer=load_scorer,
            load_others=load_others,
            out=out,
            batch_size=batch_size,
            workers=worker_count(shards, room.cpus) if workers is None else workers,
            embeddings=embeddings,
            may_all_be_missing=max_reject_share >= 1,
            threads=max(1, room.cpus),
            folder=Path.cwd(),
            seen=[marker, *{shard.path for shard in shards[:1] if shard.path is not None}],
        )
        with _Pool(ray, task, room) as pool:
            manifest = claim(out, pool.first_manifest())
            pool.shuffled = manifest.shuffled
            pool.columns = [one.column for one in manifest.more_models]
            outcomes, rescored = _score(pool, source, out, manifest, max_reject_share)
        manifest = finish_job(out, manifest, outcomes, source, max_reject_share, rescored=bool(rescored))
    total = sum(outcomes.values(), PartSummary())
    return ScoreSummary(total.scored, total.rejected, dict(total.reasons), finished=True, auc=manifest.auc)


@dataclass(frozen=True)
class _Task:
    """The settings that an actor receives once, at its start.

    Attributes:
        source, load_scorer, load_others, out, batch_size, workers, embeddings: see `score_on_ray`.
        may_all_be_missing: see `score_shard`.
        threads: number of torch threads.
        folder: the folder that relative paths are relative to.
        seen: files that must be visible from every node.
    """

    source: PairSource
    load_scorer: Callable[[], PairScorer]
    load_others: Sequence[Callable[[], PairScorer]]
    out: Path
    batch_size: int
    workers: int
    embeddings: bool
    may_all_be_missing: bool
    threads: int
    folder: Path
    seen: Sequence[Path]


class _Actor:
    """A process that Ray runs on some node: holds the model and scores one shard after another."""

    def start(self, task: _Task) -> str:
        """Load the models; returns their fingerprints."""
        # Ctrl-C may reach every process of the terminal; the process that started the actors ends them.
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
        self._others = [load() for load in task.load_others]
        self._pictures = PictureWorkers(self._scorer, task.workers, others=self._others)
        return " ".join(one.fingerprint for one in (self._scorer, *self._others))

    def manifest(self) -> Manifest:
        task = self._task
        return Manifest.of(
            task.source,
            self._scorer,
            batch_size=task.batch_size,
            embeddings=task.embeddings,
            others=self._others,
        )

    def score(self, shard: Shard, shuffled: bool, columns: Sequence[str]) -> PartSummary:
        task = self._task
        return score_shard(
            task.source,
            shard,
            self._scorer,
            task.out,
            batch_size=task.batch_size,
            workers=self._pictures,
            others=dict(zip(columns, self._others, strict=True)),
            embeddings=task.embeddings,
            shuffled=shuffled,
            may_all_be_missing=task.may_all_be_missing,
        )


class _Ended(NamedTuple):
    """A shard that an actor has finished; if the actor died, `summary` is None and `reason` says why."""

    shard: Shard
    summary: PartSummary | None
    reason: str = ""


class _Pool:
    """The actors; a context manager that ends them.

    Attributes:
        size: number of actors, including those waiting for resources or loading the model.
        idle: number of actors waiting for a shard.
        scoring: number of actors scoring a shard.
        shuffled: whether they also write shuffled scores, see `score_shard`.
        columns: the columns of the scores of the models after the first.
    """

    def __init__(self, ray: Any, task: _Task, room: Room) -> None:
        self.room = room
        self.shuffled = True
        self.columns: Sequence[str] = ()
        self._ray = ray
        self._task = ray.put(task)
        # Ray itself must not restart an actor: it would have no model.
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
        """Start another actor, without waiting for it."""
        actor = self._make()
        self._actors.append(actor)
        self._calls[actor.start.remote(self._task)] = (actor, None)

    def give(self, shard: Shard) -> None:
        """Give a shard to an idle actor."""
        actor = self._idle.pop()
        self._calls[actor.score.remote(shard, self.shuffled, self.columns)] = (actor, shard)

    def first_manifest(self) -> Manifest:
        """Start a single actor, so that a wrong model fails only once, and get the manifest of the job from it."""
        told = False
        while not self._idle:
            if not self._calls:
                self.add()
            self.wait()
            if self._calls and not told:
                say("waiting for the first actor: Ray starts it as soon as the cluster has free resources")
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
        """Wait until an actor has started or finished its shard, or for some seconds; returns the finished shards.

        Raises:
            RayEngineError: too many actors died while starting, or one has loaded a different model.
            Exception: any error raised while scoring a shard.
        """
        done, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=SECONDS_BETWEEN_SIGNS)
        ended = []
        for call in done:
            actor, shard = self._calls.pop(call)
            try:
                result = self._result(call)
            except (WorkerError, self._ray.exceptions.RayError) as error:
                # It may still be alive: cut off from the network, or without its image workers.
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
                f"{self._lost_starting} actors died while loading the model ({last_line(error)}); most often the "
                "node ran out of memory: use fewer actors, or a smaller model"
            ) from error

    def _check_model(self, fingerprint: str) -> None:
        self._lost_starting = 0
        self._fingerprint = self._fingerprint or fingerprint
        if fingerprint != self._fingerprint:
            raise RayEngineError(
                "an actor has loaded a different model than the first actor, or in a different precision; set "
                "the precision to float32 or bfloat16 instead of auto, and let all nodes load the model from one folder"
            )


def _score(
    pool: _Pool, source: PairSource, out: Path, manifest: Manifest, max_share: float
) -> tuple[dict[int, PartSummary], int]:
    """Score the shards that have no part yet, or whose part is not kept (see `kept_parts`).

    Returns:
        The outcome of each shard, by shard number, and how many of them were scored now.
    """
    shards = source.shards()
    done = kept_parts(source, out, shards, finished=manifest.finished is not None, max_share=max_share)
    todo = deque(shard for shard in shards if shard.index not in done)
    rescored, total = len(todo), sum(done.values(), PartSummary())
    limit = RejectLimit(out, shards, max_share)
    limit.add(done)
    lost: Counter[Shard] = Counter()
    reasons: dict[Shard, str] = {}
    if todo:
        before_rescoring(out, todo)
        with Meter("scoring pairs", records_in(todo, total.records), initial=total.records, unit="pairs") as meter:
            while todo or pool.scoring:
                while pool.size < min(pool.room.actors, len(todo) + pool.scoring):
                    pool.add()
                while todo and pool.idle:
                    pool.give(todo.popleft())
                before = total.records
                for shard, result, reason in pool.wait():
                    # The actor may have died after writing the part but before reporting it.
                    summary = part_summary(out, shard.index) if result is None else result
                    if summary is not None and (result is not None or is_usable(summary, max_share)):
                        total += summary
                        done[shard.index] = summary
                        limit.add({shard.index: summary})
                        continue
                    remove_leftovers(part_path(out, shard.index))
                    lost[shard] += 1
                    reasons[shard] = reason
                    if lost[shard] <= RETRIES:
                        # Retry it last, so that it cannot block the others.
                        todo.append(shard)
                limit.check_certain()
                meter.advance(total.records - before, f"{pool.scoring} of {pool.room.actors} actors busy")
    _check_lost({shard: reasons[shard] for shard, times in lost.items() if times > RETRIES})
    return done, rescored


def _check_lost(reasons: Mapping[Shard, str]) -> None:
    if reasons:
        names = ", ".join(shard.name for shard in list(reasons)[:3]) + (", …" if len(reasons) > 3 else "")
        raise RayEngineError(
            f"{len(reasons)} shards were given up, each after {1 + RETRIES} actors had died while scoring it: {names} "
            f"({next(iter(reasons.values()))}). Most often a node ran out of memory: use fewer workers, a smaller "
            "batch size or smaller shards. All other parts are complete; run the same command again to resume"
        )
