"""Notes on usable records: fields that are ignored and turns that are dropped."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from aligngpt.data.records.fields import fields_not_read
from aligngpt.data.records.sample import notes_on

SHOWN_FIELDS = 10
"""Number of fields shown in the terminal; the JSON results list all of them."""


class Notes:
    """Counts of records, by field and by note.

    Attributes:
        not_read: number of records per ignored field.
        others: number of records per note; see `notes_on`.
    """

    def __init__(self) -> None:
        self.not_read: Counter[str] = Counter()
        self.others: Counter[str] = Counter()

    def add(self, record: Mapping[str, Any]) -> None:
        """Count the notes on a usable record."""
        self.not_read.update(fields_not_read(record))
        self.others.update(notes_on(record))


def note_lines(not_read: Mapping[str, int], others: Mapping[str, int]) -> list[str]:
    """The notes as lines for the terminal."""
    lines = [f"  note: {_records(count)} {note}" for note, count in others.items()]
    if not_read:
        most = sorted(not_read.items(), key=lambda pair: -pair[1])
        named = ", ".join(f"`{field}` ({_records(count)})" for field, count in most[:SHOWN_FIELDS])
        more = f" and {len(most) - SHOWN_FIELDS:,} more" if len(most) > SHOWN_FIELDS else ""
        lines.append(f"  note: ignored fields: {named}{more}")
    return lines


def _records(count: int) -> str:
    return f"{count:,} record" + ("" if count == 1 else "s")
