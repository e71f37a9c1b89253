"""Whether too large a share of a job's records is rejected: judged on all of them, whichever are scored first."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from aligngpt.data.rejects import Rejects, TooManyRejects
from aligngpt.data.sources.base import Shard
from aligngpt.progress import console
from aligngpt.scoring.checksums import DamagedError, open_checked
from aligngpt.scoring.score_files import REJECTS_PATTERN, PartSummary, ScoresError

RECORDS_TO_JUDGE = 200
"""Records to have read before a word is said: a few bad ones at the beginning say little."""


class RejectLimit:
    """The share of a job's records that may be rejected.

    A job ends before its last shard only when that cannot change the outcome: when more records were rejected than the
    share of all records allows. Where shards do not tell how many they hold, as tar files, it is assumed that those
    to come hold, for each of their bytes, at most as many as the fullest one so far.

    Args:
        out: folder of the scores.
        shards: all of the source, also those that other processes score.
        max_share: share of the records, 0…1.
    """

    def __init__(self, out: Path, shards: Sequence[Shard], max_share: float) -> None:
        self.out = out
        self.max_share = max_share
        self._warned = False
        self._densest = 0.0
        self._total = PartSummary()
        # Of shards that do not tell it, the bytes that are left.
        self._bytes = {shard.index: _bytes_of(shard) for shard in shards if shard.records is None}
        self._told = sum(shard.records for shard in shards if shard.records is not None)
        self._untold_read = 0
        self._bytes_left = sum(self._bytes.values())

    def add(self, done: Mapping[int, PartSummary]) -> None:
        """Count what became of the records of shards, by their number."""
        for index, summary in done.items():
            self._total += summary
            if (size := self._bytes.get(index)) is not None:
                self._untold_read += summary.records
                self._bytes_left -= size
                self._densest = max(self._densest, summary.records / max(1, size))

    def check_certain(self) -> None:
        """End a job that cannot end well any more; say once where it looks as if.

        Raises:
            TooManyRejects: whatever the shards to come hold, too large a share of all records is rejected.
        """
        if self._total.records < RECORDS_TO_JUDGE:
            return
        all_records = self._told + self._untold_read + int(self._bytes_left * self._densest)
        if self._total.rejected > self.max_share * all_records:
            check_share(self.out, self._total, self.max_share, records=all_records)
        elif not self._warned and self._total.rejected > self.max_share * self._total.records:
            self._warned = True
            reason, count = max(self._total.reasons.items(), key=lambda item: item[1])
            console.print(
                f"{self._total.rejected} of the first {self._total.records} records cannot be used ({reason} {count}), "
                f"more than the {self.max_share:.1%} that may be of all; the job goes on, since the others may be "
                f"better. {self.out / REJECTS_PATTERN} name each record",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def check_outcome(out: Path, summary: PartSummary, max_share: float, place: str) -> None:
    """End a job that has read all its records and did not end well.

    Args:
        out: folder of the scores.
        summary: what became of all records.
        max_share: share of the records, 0…1, that may be rejected.
        place: what people call the source.

    Raises:
        TooManyRejects: too large a share of the records was rejected.
        ScoresError: nothing could be scored, however large a share may be rejected.
    """
    check_share(out, summary, max_share)
    if not summary.scored:
        found = ", ".join(f"{reason} {count}" for reason, count in summary.reasons.items()) or "no record at all"
        raise ScoresError(f"{place}: nothing could be scored, found {found}; look at the data and the image root")


def check_share(out: Path, summary: PartSummary, max_share: float, *, records: int | None = None) -> None:
    """End a job of whose records too large a share was rejected.

    Args:
        out: folder of the scores.
        summary: what became of the records.
        max_share: share of the records, 0…1.
        records: how many there are, where `summary` is not of all of them.

    Raises:
        TooManyRejects: with the reasons, and where each record is named.
    """
    rejects = Rejects(None, max_share)
    rejects.by_reason.update(summary.reasons)
    try:
        rejects.check(summary.records if records is None else records)
    except TooManyRejects as error:
        raise TooManyRejects(f"{error}. {out / REJECTS_PATTERN} name each record{_first_reject(out)}") from error


def _first_reject(out: Path) -> str:
    """Why the first record was rejected: of pictures that are missing, the path tells whether the root is wrong."""
    for path in sorted(out.glob(REJECTS_PATTERN)):
        with suppress(OSError, pa.ArrowException, DamagedError), open_checked(path) as file:
            if details := file.read(columns=["detail"])["detail"].slice(0, 1).to_pylist():
                return f"; the first: {details[0]}"
    return ""


def _bytes_of(shard: Shard) -> int:
    # A file that is gone is an error where it is read.
    with suppress(OSError):
        return 0 if shard.path is None else shard.path.stat().st_size
    return 0
