"""Decides which parts of an earlier run are kept when a job is resumed."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from aligngpt.data.records.pairs import PairSource
from aligngpt.data.sources.base import Shard
from aligngpt.progress import Meter, say
from aligngpt.scoring.picture_marks import changed_pictures
from aligngpt.scoring.score_files import PartSummary, existing_parts, read_part_outcome

SECONDS_UNSEEN = 3.0
"""How long the check may take before its progress is shown: it reads a piece of every image file."""


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
        say(remark)
    kept: dict[int, PartSummary] = {}
    parts = pictures = 0
    existing = existing_parts(out)
    for shard in _shown_if_slow([shard for shard in shards if shard.index in existing]):
        found = read_part_outcome(out, shard.index)
        if found is None or (not finished and not is_usable(found.summary, max_share)):
            continue
        if changed := changed_pictures(source.read(shard), found.marks) if found.marks else 0:
            parts, pictures = parts + 1, pictures + changed
            continue
        kept[shard.index] = found.summary
    if parts:
        say(
            f"{_counted(pictures, 'image')} of {source.place} changed since {out} was scored: "
            f"{_counted(parts, 'part')} of it will be scored again"
        )
    return kept


def is_usable(summary: PartSummary, max_share: float) -> bool:
    """Whether the share of rejects in a part is small enough to keep the part."""
    return summary.rejected <= max_share * max(1, summary.records)


def _shown_if_slow(shards: Sequence[Shard]) -> Iterator[Shard]:
    """Yield the shards, with a progress display from the first one that is not done after `SECONDS_UNSEEN`."""
    began = time.monotonic()
    with ExitStack() as stack:
        meter: Meter | None = None
        for done, shard in enumerate(shards):
            if meter is None and time.monotonic() - began > SECONDS_UNSEEN:
                meter = Meter("checking the parts of an earlier run", len(shards), initial=done, unit="parts")
                stack.enter_context(meter)
            yield shard
            if meter is not None:
                meter.advance()


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
