"""Which parts of an earlier run are kept when a job is started again."""

from collections.abc import Iterable
from pathlib import Path

from aligngpt.data.records.pairs import PairSource
from aligngpt.data.sources.base import Shard
from aligngpt.progress import console
from aligngpt.scoring.picture_marks import changed_pictures
from aligngpt.scoring.score_files import PartSummary, ScoresError, part_marks, part_summary


def kept_parts(
    source: PairSource, out: Path, shards: Iterable[Shard], *, finished: bool, max_share: float
) -> dict[int, PartSummary]:
    """What became of the records of the shards whose parts are kept, by the shards' numbers.

    A part is made anew when it is missing or damaged, when a picture file it was made of has been replaced (see
    `aligngpt.scoring.picture_marks`), and in an unfinished job when by itself too large a share of it was rejected: the
    pictures may have been put where they belong. Says how many pictures were replaced, and what the source has to
    remark.

    Args:
        source: what is scored.
        out: folder of the scores.
        shards: the shards to look at.
        finished: whether the job was finished.
        max_share: share of the records, 0…1, that may be rejected.

    Raises:
        SourceError: the source cannot be read any more.
    """
    if remark := source.remark():
        _tell(remark)
    kept: dict[int, PartSummary] = {}
    parts = pictures = 0
    for shard in shards:
        summary = part_summary(out, shard.index)
        if summary is None or (not finished and not is_usable(summary, max_share)):
            continue
        if changed := _changed(source, out, shard):
            parts, pictures = parts + 1, pictures + changed
            continue
        kept[shard.index] = summary
    if parts:
        _tell(
            f"{_counted(pictures, 'picture')} of {source.place} changed since {out} was scored: "
            f"{_counted(parts, 'part')} of it will be scored again"
        )
    return kept


def is_usable(summary: PartSummary, max_share: float) -> bool:
    """Whether a part need not be made anew because by itself too large a share was rejected."""
    return summary.rejected <= max_share * max(1, summary.records)


def _changed(source: PairSource, out: Path, shard: Shard) -> int:
    """How many pictures of a part were replaced since it was written."""
    try:
        marks = part_marks(out, shard.index)
    except ScoresError:
        # Another process is writing it anew at this moment.
        return 0
    return changed_pictures(source.read(shard), marks) if marks else 0


def _tell(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
