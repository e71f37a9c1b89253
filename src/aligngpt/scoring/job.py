"""Scores a source of pairs shard by shard; resumable, and several processes can share the work.

The scoring itself is in `aligngpt.scoring.pipeline`, the output files in `aligngpt.scoring.score_files`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from aligngpt.cpus import usable_cpus
from aligngpt.data.records.pairs import PairSource
from aligngpt.data.sources.base import Shard
from aligngpt.progress import Meter
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.finishing import finish_job
from aligngpt.scoring.manifest import Manifest, before_rescoring, claim, finished_manifest
from aligngpt.scoring.picture_workers import PictureWorkers
from aligngpt.scoring.pipeline import score_shards
from aligngpt.scoring.reject_share import RejectLimit
from aligngpt.scoring.resuming import kept_parts
from aligngpt.scoring.score_files import (
    PART_FIELDS,
    PartSummary,
    ScoresError,
    existing_parts,
    part_summary,
    read_batches,
)
from aligngpt.scoring.several_models import by_column
from aligngpt.scoring.shares import owned_share

__all__ = ["ScoreSummary", "read_parts", "read_scores", "score_source"]

SCORE_COLUMNS = ("record", "id", "score")

MAX_WORKERS = 16
FEW_RECORDS = 2000
"""Below this number of records, a thread is faster: it opens all images before the first process has started."""


@dataclass(frozen=True)
class ScoreSummary:
    """The outcome of a scoring job.

    Attributes:
        scored: number of pairs with a score, in this job's shards.
        rejected: number of records without a score, in the same shards.
        reasons: number of rejected records by reason.
        finished: whether the parts of all shards exist, including those assigned to other processes.
        auc: how well the scores of the whole job tell its pairs from shuffled ones, 0…1, see
            `aligngpt.scoring.separation`; None if that is unknown.
    """

    scored: int
    rejected: int
    reasons: dict[str, int]
    finished: bool
    auc: float | None = field(default=None, compare=False)


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
    others: Sequence[PairScorer] = (),
) -> ScoreSummary:
    """Score every pair of a source, or resume an interrupted call with the same arguments.

    Writes a `part-*.parquet` and a `rejects-*.parquet` per shard, and `manifest.json`, into `out`. Existing parts are
    kept, apart from the exceptions listed in `kept_parts`. While it runs, no other process may score the same share of
    the shards into `out`.

    Args:
        source: see `open_pairs`.
        scorer: the model.
        out: folder of the scores.
        batch_size: distinct images, or distinct captions, encoded together; at least 1.
        workers: number of threads or processes that open images (see `PictureWorkers`); 0 for one thread, None for a
            number that suits the machine and the source. Processes are spawned, so a script that calls this with a
            value other than 0 needs `if __name__ == "__main__":`.
        embeddings: also store the image and caption features.
        max_reject_share: maximum share of rejected records in the whole source, 0…1; see `RejectLimit`.
        shard: `(i, n)`: score only every n-th shard, starting at shard i in 0…n-1; other processes score the rest into
            the same folder.
        others: more models on the same device, each with its own score column, see `further_models`. A pair gets a
            score only if all models can take its image. Embeddings and shuffled scores are those of `scorer`.

    Raises:
        FolderInUse: another process is scoring the same share of the shards into `out`.
        ScoresError: `out` holds other scores, the source changed while it was scored, nothing could be scored, or an
            argument is invalid.
        ScorerError: the model gives a score that is not finite.
        TooManyRejects: too large a share of the records cannot be scored, or no image is found.
        WorkerError: a process that opens images died.
        OSError: a part cannot be written.
    """
    if batch_size < 1:
        raise ScoresError(f"the batch size must be at least 1, got {batch_size}")
    shards = source.shards()
    mine = _own_shards(shards, shard)
    with owned_share(out, shard):
        wanted = Manifest.of(source, scorer, batch_size=batch_size, embeddings=embeddings, others=others)
        manifest = claim(out, wanted)
        outcomes, rescored = _score(source, scorer, others, out, mine, manifest, workers, max_reject_share)
        auc = None
        if finished := _is_complete(out, manifest, outcomes):
            auc = finish_job(out, manifest, outcomes, source, max_reject_share, rescored=bool(rescored)).auc
    total = sum((outcomes[one.index] for one in mine), PartSummary())
    return ScoreSummary(total.scored, total.rejected, dict(total.reasons), finished, auc)


def _score(
    source: PairSource,
    scorer: PairScorer,
    others: Sequence[PairScorer],
    out: Path,
    mine: Sequence[Shard],
    manifest: Manifest,
    workers: int | None,
    max_reject_share: float,
) -> tuple[dict[int, PartSummary], int]:
    """Score the shards that have no part yet.

    Returns:
        The outcome of each shard in `mine`, by shard number, and how many of them were scored now.
    """
    is_finished = manifest.finished is not None
    done = kept_parts(source, out, mine, finished=is_finished, max_share=max_reject_share)
    todo = [one for one in mine if one.index not in done]
    limit = RejectLimit(out, source.shards(), max_reject_share)
    limit.add(done)
    total = sum(done.values(), PartSummary())
    if todo:
        before_rescoring(out, todo)
        count = worker_count(todo, usable_cpus()) if workers is None else workers
        with (
            PictureWorkers(scorer, count, others=others) as pictures,
            Meter("scoring pairs", records_in(todo, total.records), initial=total.records, unit="pairs") as meter,
        ):

            def finished(shard: Shard, summary: PartSummary) -> None:
                done[shard.index] = summary
                limit.add({shard.index: summary})
                limit.check_certain()

            score_shards(
                source,
                todo,
                scorer,
                out,
                batch_size=manifest.batch_size,
                workers=pictures,
                finished=finished,
                others=by_column(manifest.more_models, others),
                embeddings=manifest.embeddings,
                shuffled=manifest.shuffled,
                may_all_be_missing=max_reject_share >= 1,
                advance=meter.advance,
            )
    return done, len(todo)


def read_parts(out: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a finished job in source order, in batches; the first column is the shard number.

    Args:
        out: folder of the scores.
        columns: columns to read (see `PART_FIELDS`); all when None.

    Raises:
        ScoresError: the folder holds no scores, the job is not finished, or a part is damaged.
    """
    yield from read_batches(out, finished_manifest(out).shards, columns)


def read_scores(out: Path) -> pa.Table:
    """The scores of a finished job in source order: columns `shard`, `record`, `id` and `score`.

    Raises:
        ScoresError: see `read_parts`.
    """
    fields = [pa.field("shard", pa.int32(), nullable=False), *PART_FIELDS[:3]]
    return pa.Table.from_batches(read_parts(out, SCORE_COLUMNS), schema=pa.schema(fields))


def _own_shards(shards: Sequence[Shard], share: tuple[int, int] | None) -> list[Shard]:
    index, count = (0, 1) if share is None else share
    if not 0 <= index < count:
        raise ScoresError(f"expected a share of the shards i/n with i in 0…n-1, found {index}/{count}")
    return [shard for shard in shards if shard.index % count == index]


def records_in(shards: Sequence[Shard], others: int = 0) -> int | None:
    """Total number of records in the shards plus `others`; None if a shard does not state its number."""
    counts = [shard.records for shard in shards]
    return None if None in counts else sum((count for count in counts if count is not None), others)


def worker_count(shards: Sequence[Shard], cpus: int) -> int:
    """The default number of processes that open images; 0, for one thread, if the source is small."""
    records = records_in(shards)
    return 0 if records is not None and records < FEW_RECORDS else min(MAX_WORKERS, cpus)


def _is_complete(out: Path, manifest: Manifest, outcomes: dict[int, PartSummary]) -> bool:
    """Whether the parts of all shards exist; adds the outcomes of those that other processes scored to `outcomes`.

    If several processes share the job, the one that writes the last part sees the parts of all the others.
    """
    if not set(range(manifest.shards)) <= existing_parts(out):
        return False
    for index in set(range(manifest.shards)) - set(outcomes):
        summary = part_summary(out, index)
        if summary is None:
            return False
        outcomes[index] = summary
    return True
