"""Records that cannot be used: counted, written down with their reason, and no end of the job until they are many."""

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from aligngpt.errors import AlignGPTError


class TooManyRejects(AlignGPTError):
    """A larger share of the records cannot be used than the job allows."""


class Rejected(NamedTuple):
    """A sample that could not be made into an example: its place among the samples, and what `Rejects.add` takes."""

    place: int
    record: int
    id: str | None
    reason: str
    detail: str


class Rejects:
    """The rejected records of one job; a context manager that owns the rejects file.

    Args:
        path: JSON lines file, made with the first reject; an older one is replaced. None keeps only the counts.
        max_share: share of the records, 0…1, from which on `check` ends the job.
    """

    def __init__(self, path: Path | None, max_share: float = 0.05) -> None:
        self.path = path
        self.max_share = max_share
        self.by_reason: Counter[str] = Counter()
        if path is not None:
            path.unlink(missing_ok=True)

    def __enter__(self) -> "Rejects":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held open: each reject is on disk when it was added."""

    def move(self, path: Path) -> None:
        """Keep the rejects at `path` from now on, those so far included; an older file there is replaced."""
        if self.path is not None and self.path.is_file():
            self.path.replace(path)
        else:
            path.unlink(missing_ok=True)
        self.path = path

    @property
    def count(self) -> int:
        """How many records were rejected."""
        return self.by_reason.total()

    def add(self, record: int, id: str | None, reason: str, detail: str) -> None:
        """Count a record as rejected and write it down.

        Args:
            record: its number in the source, from 0.
            id: its own id, where it has one.
            reason: short name of why, by which rejects are counted.
            detail: the whole story.
        """
        self.by_reason[reason] += 1
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # What UTF-8 cannot hold (half a surrogate pair) becomes a JSON escape.
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                line = {"record": record, "id": id, "reason": reason, "detail": detail}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def check(self, total: int) -> None:
        """End the job when too many of `total` records were rejected.

        Raises:
            TooManyRejects: with the share, the limit and the most frequent reasons.
        """
        if total and self.count / total > self.max_share:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.by_reason.most_common(3))
            place = f"; {self.path} names each" if self.path is not None else ""
            raise TooManyRejects(
                f"{self.count} of {total} records cannot be used ({self.count / total:.1%}, at most "
                f"{self.max_share:.1%} are passed over): {reasons}{place}. Look at the data and the image root, or "
                "allow a larger share"
            )
