"""Scoring a source of pairs, shard by shard: goes on where it was stopped, and shares the work with other processes.

The work is in `aligngpt.scoring.pipeline`; what is kept of it, in `aligngpt.scoring.score_files`.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from aligngpt.data.records.pairs import PairSource
from aligngpt.data.sources.base import Shard
from aligngpt.progress import Meter
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.manifest import Manifest, claim, finish, finished_manifest
from aligngpt.scoring.picture_workers import PictureWorkers
from aligngpt.scoring.pipeline import score_shard
from aligngpt.scoring.reject_share import RejectLimit, check_outcome
from aligngpt.scoring.resuming import kept_parts
from aligngpt.scoring.score_files import PART_FIELDS, PartSummary, ScoresError, part_path, part_summary, read_batches
from aligngpt.scoring.shares import owned_share, parse_share

__all__ = ["ScoreSummary", "parse_share", "read_parts", "read_scores", "score_source"]

SCORE_COLUMNS = ("record", "id", "score")

MAX_WORKERS = 16
FEW_RECORDS = 2000
"""So few pictures a thread has opened before the first process has started."""


@dataclass(frozen=True)
class ScoreSummary:
    """How a scoring job ended.

    Attributes:
        scored: pairs with a score, in the shards this job was for.
        rejected: records without one, in the same shards.
        reasons: how many of the rejected, by reason.
        finished: the parts of all shards are there, also of those that other processes were to score.
    """

    scored: int
    rejected: int
    reasons: dict[str, int]
    finished: bool


def score_source(
    source: PairSource,
    scorer: PairScorer,
    out: Path,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    embeddings: bool = False,
    max_reject_share: float = 0.05,
    shard: tuple[int, int] | None = None,
) -> ScoreSummary:
    """Score every pair of a source, or go on where an earlier call with the same arguments was stopped.

    Writes into `out` a `part-*.parquet` and a `rejects-*.parquet` for each shard, and `manifest.json`. Parts that are
    there are kept, but for those that `kept_parts` tells of. While it runs, no other process may score the same share
    of the shards into `out`.

    Args:
        source: see `open_pairs`.
        scorer: the model.
        out: folder of the scores.
        batch_size: distinct images, or distinct captions, encoded together; at least 1.
        workers: threads or processes that open pictures (see `PictureWorkers`); 0 for one thread, None for as many as
            fit the machine and the source. Processes are spawned, so a script that calls this with other than 0 needs
            `if __name__ == "__main__":`.
        embeddings: also keep the features of images and captions.
        max_reject_share: share of all records of the source, 0…1, that may be rejected; see `RejectLimit`.
        shard: `(i, n)`: score every n-th shard only, from the i-th on, 0…n-1; other processes score the others
            into the same folder.

    Raises:
        FolderInUse: another process scores the same share of the shards into `out`.
        ScoresError: `out` holds other scores, the source changed while it was scored, nothing could be scored, or an
            argument makes no sense.
        ScorerError: the model gives a score that is not finite.
        TooManyRejects: too large a share of the records cannot be scored, or no picture is found.
        WorkerError: a process that opens pictures ended.
        OSError: a part cannot be written.
    """
    if batch_size < 1:
        raise ScoresError(f"the batch size must be at least 1, got {batch_size}")
    shards = source.shards()
    mine = _own_shards(shards, shard)
    with owned_share(out, shard):
        manifest = claim(out, Manifest.of(source, scorer, batch_size=batch_size, embeddings=embeddings))
        total = _score(source, scorer, out, mine, manifest, workers, max_reject_share)
        finished = _finish(out, manifest, max_reject_share, source)
    return ScoreSummary(total.scored, total.rejected, dict(total.reasons), finished)


def _score(
    source: PairSource,
    scorer: PairScorer,
    out: Path,
    mine: Sequence[Shard],
    manifest: Manifest,
    workers: int | None,
    max_reject_share: float,
) -> PartSummary:
    """Score the shards that have no part; returns what became of the records of all of `mine`."""
    is_finished = manifest.finished is not None
    done = kept_parts(source, out, mine, finished=is_finished, max_share=max_reject_share)
    todo = [one for one in mine if one.index not in done]
    limit = RejectLimit(out, source.shards(), max_reject_share)
    limit.add(done)
    total = sum(done.values(), PartSummary())
    if todo:
        records = _records(todo)
        count = _worker_count(records) if workers is None else workers
        known = None if records is None else total.records + records
        with (
            PictureWorkers(scorer, count) as pictures,
            Meter("scoring pairs", known, initial=total.records, unit="pairs") as meter,
        ):
            for one in todo:
                summary = score_shard(
                    source,
                    one,
                    scorer,
                    out,
                    batch_size=manifest.batch_size,
                    workers=pictures,
                    embeddings=manifest.embeddings,
                    may_all_be_missing=max_reject_share >= 1,
                    advance=meter.advance,
                )
                total += summary
                limit.add({one.index: summary})
                limit.check_certain()
    return total


def read_parts(out: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a finished job in the order of the source, a batch at a time, the number of the shard first.

    Args:
        out: folder of the scores.
        columns: those that are wanted (see `PART_FIELDS`); all when None.

    Raises:
        ScoresError: the folder holds no scores, the job was not finished, or a part is damaged.
    """
    yield from read_batches(out, finished_manifest(out).shards, columns)


def read_scores(out: Path) -> pa.Table:
    """The scores of a finished job in the order of the source: columns `shard`, `record`, `id` and `score`.

    Raises:
        ScoresError: as `read_parts`.
    """
    fields = [pa.field("shard", pa.int32(), nullable=False), *PART_FIELDS[:3]]
    return pa.Table.from_batches(read_parts(out, SCORE_COLUMNS), schema=pa.schema(fields))


def _own_shards(shards: Sequence[Shard], share: tuple[int, int] | None) -> list[Shard]:
    index, count = (0, 1) if share is None else share
    if not 0 <= index < count:
        raise ScoresError(f"expected a share of the shards i/n with i in 0…n-1, found {index}/{count}")
    return [shard for shard in shards if shard.index % count == index]


def _records(shards: Sequence[Shard]) -> int | None:
    """How many records the shards have together, where all of them tell."""
    counts = [shard.records for shard in shards]
    return None if None in counts else sum(count for count in counts if count is not None)


def _worker_count(records: int | None) -> int:
    """How many processes open pictures when nobody says; a thread is enough for a small source."""
    return 0 if records is not None and records < FEW_RECORDS else min(MAX_WORKERS, os.cpu_count() or 1)


def _finish(out: Path, manifest: Manifest, max_share: float, source: PairSource) -> bool:
    """Note that the job is finished when the parts of all shards are there; returns whether they are.

    Of several processes, the last to write a part sees all the others'.
    """
    total = PartSummary()
    for index in range(manifest.shards):
        # Those that are not there at all are found without reading the others.
        if not part_path(out, index).exists():
            return False
    for index in range(manifest.shards):
        summary = part_summary(out, index)
        if summary is None:
            return False
        total += summary
    check_outcome(out, total, max_share, source.place)
    if manifest.finished != total:
        finish(out, manifest, total, source)
    return True
