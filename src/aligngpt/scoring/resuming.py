"""Decides which parts of an earlier run are kept when a job is resumed."""

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
    """Outcomes of the shards whose parts are kept, by shard number.

    A part is scored again if it is missing or damaged, or if one of its image files has been replaced (see
    `aligngpt.scoring.picture_marks`). In an unfinished job, so is a part whose own share of rejects is too large, since
    missing images may have been added. Prints the number of replaced images, and the source's remark if it has one.

    Args:
        source: the source being scored.
        out: folder of the scores.
        shards: the shards to check.
        finished: whether the job was finished.
        max_share: maximum share of rejected records, 0…1.

    Raises:
        SourceError: the source can no longer be read.
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
            f"{_counted(pictures, 'image')} of {source.place} changed since {out} was scored: "
            f"{_counted(parts, 'part')} of it will be scored again"
        )
    return kept


def is_usable(summary: PartSummary, max_share: float) -> bool:
    """Whether the share of rejects in a part is small enough to keep the part."""
    return summary.rejected <= max_share * max(1, summary.records)


def _changed(source: PairSource, out: Path, shard: Shard) -> int:
    """Number of images that were replaced since their part was written."""
    try:
        marks = part_marks(out, shard.index)
    except ScoresError:
        # Another process is rewriting it at this moment.
        return 0
    return changed_pictures(source.read(shard), marks) if marks else 0


def _tell(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
