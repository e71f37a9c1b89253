"""Checks whether too large a share of a job's records is rejected, out of all records rather than the first ones."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from aligngpt.data.rejects import Rejects, TooManyRejects
from aligngpt.data.sources.base import Shard
from aligngpt.progress import say
from aligngpt.scoring.checksums import DamagedError, open_checked
from aligngpt.scoring.score_files import REJECTS_PATTERN, PartSummary, ScoresError

RECORDS_TO_JUDGE = 200
"""Number of records to read before judging: a few bad records at the beginning mean little."""


class RejectLimit:
    """The limit on the share of a job's records that may be rejected.

    A job is stopped early only when the remaining shards cannot change the outcome: when the number of rejects exceeds
    the allowed share of all records. If shards do not state their number of records, as tar files, the remaining ones
    are assumed to hold at most as many records per byte as the densest shard so far.

    Args:
        out: folder of the scores.
        shards: all shards of the source, including those that other processes score.
        max_share: maximum share of rejected records, 0…1.
    """

    def __init__(self, out: Path, shards: Sequence[Shard], max_share: float) -> None:
        self.out = out
        self.max_share = max_share
        self._warned = False
        self._densest = 0.0
        self._total = PartSummary()
        # Bytes of the remaining shards that do not state their number of records.
        self._bytes = {shard.index: _bytes_of(shard) for shard in shards if shard.records is None}
        self._told = sum(shard.records for shard in shards if shard.records is not None)
        self._untold_read = 0
        self._bytes_left = sum(self._bytes.values())

    def add(self, done: Mapping[int, PartSummary]) -> None:
        """Add the outcomes of shards, by shard number."""
        for index, summary in done.items():
            self._total += summary
            if (size := self._bytes.get(index)) is not None:
                self._untold_read += summary.records
                self._bytes_left -= size
                self._densest = max(self._densest, summary.records / max(1, size))

    def check_certain(self) -> None:
        """Stop a job that can no longer stay within the limit; warn once if it is over the limit so far.

        Raises:
            TooManyRejects: too large a share of all records is rejected, whatever the remaining shards hold.
        """
        if self._total.records < RECORDS_TO_JUDGE:
            return
        all_records = self._told + self._untold_read + int(self._bytes_left * self._densest)
        if self._total.rejected > self.max_share * all_records:
            check_share(self.out, self._total, self.max_share, records=all_records)
        elif not self._warned and self._total.rejected > self.max_share * self._total.records:
            self._warned = True
            reason, count = max(self._total.reasons.items(), key=lambda item: item[1])
            say(
                f"{self._total.rejected} of the first {self._total.records} records cannot be used ({reason} {count}), "
                f"more than the {self.max_share:.1%} allowed overall; the job continues, since the remaining records "
                f"may be better. {self.out / REJECTS_PATTERN} list each reject"
            )


def check_outcome(out: Path, summary: PartSummary, max_share: float, place: str) -> None:
    """Check the outcome of a job that has read all its records.

    Args:
        out: folder of the scores.
        summary: the outcome of all records.
        max_share: maximum share of rejected records, 0…1.
        place: the source's name in messages.

    Raises:
        TooManyRejects: too large a share of the records was rejected.
        ScoresError: nothing could be scored; an error whatever `max_share` is.
    """
    check_share(out, summary, max_share)
    if not summary.scored:
        found = ", ".join(f"{reason} {count}" for reason, count in summary.reasons.items()) or "no record at all"
        raise ScoresError(f"{place}: nothing could be scored, found {found}; check the data and the image root")


def check_share(out: Path, summary: PartSummary, max_share: float, *, records: int | None = None) -> None:
    """Check that not too large a share of the records was rejected.

    Args:
        out: folder of the scores.
        summary: the outcome of the records.
        max_share: maximum share of rejected records, 0…1.
        records: total number of records, if `summary` does not cover all of them.

    Raises:
        TooManyRejects: too many rejects; the message gives the reasons and the files that list each record.
    """
    rejects = Rejects(None, max_share)
    rejects.by_reason.update(summary.reasons)
    try:
        rejects.check(summary.records if records is None else records)
    except TooManyRejects as error:
        raise TooManyRejects(f"{error}. {out / REJECTS_PATTERN} list each reject{_first_reject(out)}") from error


def _first_reject(out: Path) -> str:
    """Why the first record was rejected: for a missing image, its path shows whether the image root is wrong."""
    for path in sorted(out.glob(REJECTS_PATTERN)):
        with suppress(OSError, pa.ArrowException, DamagedError), open_checked(path) as file:
            if details := file.read(columns=["detail"])["detail"].slice(0, 1).to_pylist():
                return f"; the first: {details[0]}"
    return ""


def _bytes_of(shard: Shard) -> int:
    # A missing file is reported when it is read.
    with suppress(OSError):
        return 0 if shard.path is None else shard.path.stat().st_size
    return 0
