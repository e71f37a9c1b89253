"""What training says about records that it could not use."""

import json
from collections import Counter
from pathlib import Path

SHOWN = 3
"""Number of reasons that are named."""


def skipped_line(reasons: Counter[str], lists: str) -> str:
    """The number of skipped records and the most frequent reasons in one line.

    Args:
        reasons: number of records by reason.
        lists: the file or command that lists them all.
    """
    named = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common(SHOWN))
    records = "1 record" if reasons.total() == 1 else f"{reasons.total():,} records"
    return f"{records} skipped ({named}); {lists} lists all of them"


def skipped_in(rejects: Path) -> str | None:
    """The line of a file of rejects; None if there is no such file."""
    if not rejects.is_file():
        return None
    with rejects.open(encoding="utf-8") as lines:
        return skipped_line(Counter(json.loads(line)["reason"] for line in lines), str(rejects))
