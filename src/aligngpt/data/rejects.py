"""Rejected records: counted, written to a file with their reasons, and fatal only above a maximum share."""

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from aligngpt.errors import AlignGPTError


class TooManyRejects(AlignGPTError):
    """The share of unusable records exceeds the job's limit."""


class Rejected(NamedTuple):
    """A sample that could not be made into an example: its index, and the arguments of `Rejects.add`."""

    place: int
    record: int
    id: str | None
    reason: str
    detail: str


class Rejects:
    """The rejected records of one job; a context manager that owns the rejects file.

    Args:
        path: JSON lines file, created with the first reject; an existing file is deleted. If None, only count.
        max_share: share of the records, 0…1, above which `check` raises.
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
        """Do nothing: `add` writes each reject at once and keeps no file open."""

    def move(self, path: Path) -> None:
        """Move the rejects file to `path` and continue there; an existing file is replaced."""
        if self.path is not None and self.path.is_file():
            self.path.replace(path)
        else:
            path.unlink(missing_ok=True)
        self.path = path

    @property
    def count(self) -> int:
        """The number of rejected records."""
        return self.by_reason.total()

    def add(self, record: int, id: str | None, reason: str, detail: str) -> None:
        """Count a rejected record and append it to the file.

        Args:
            record: its index in the source, from 0.
            id: its own id, if it has one.
            reason: short name that rejects are counted by.
            detail: the full message.
        """
        self.by_reason[reason] += 1
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Lone surrogates, which UTF-8 cannot encode, become JSON escapes.
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                line = {"record": record, "id": id, "reason": reason, "detail": detail}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def check(self, total: int) -> None:
        """Raise if too large a share of `total` records was rejected.

        Raises:
            TooManyRejects: the message gives the share, the limit and the most frequent reasons.
        """
        if total and self.count / total > self.max_share:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.by_reason.most_common(3))
            place = f"; {self.path} lists them all" if self.path is not None else ""
            raise TooManyRejects(
                f"{self.count} of {total} records cannot be used ({self.count / total:.1%}; the limit is "
                f"{self.max_share:.1%}): {reasons}{place}. Check the data and the image root, or "
                "where the command has it allow a larger share: --max-reject-share, or max_reject_share in a recipe"
            )
