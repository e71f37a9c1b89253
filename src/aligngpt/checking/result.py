"""The results of checking a file of records, and their terminal output."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aligngpt.checking.notes import note_lines
from aligngpt.printing import printable

SHOWN = 3
"""Number of examples shown per reason."""

MOST_LISTED = 10_000
"""Number of problems listed per reason in the JSON results, and of repeats and cut samples; all are counted."""


class Problem(NamedTuple):
    """Why a record would be rejected: its number from 0, its own id if it has one, reason and details."""

    record: int
    id: str | None
    reason: str
    detail: str


class Repeat(NamedTuple):
    """A record that repeats an earlier one: both numbers from 0, and its id."""

    record: int
    earlier: int
    id: str


@dataclass(frozen=True)
class Repeats:
    """The first `MOST_LISTED` repeats, and the number of all."""

    listed: tuple[Repeat, ...]
    count: int


class Lengths(NamedTuple):
    """Token counts of the untruncated samples.

    Attributes:
        p50, p95, p99: percentiles.
        longest: maximum.
        max_length: length that longer samples are truncated to.
        cut: numbers of the records that lose turns or the end of their answer to truncation; the first `MOST_LISTED`.
        cut_count: the number of all of these.
    """

    p50: int
    p95: int
    p99: int
    longest: int
    max_length: int
    cut: tuple[int, ...]
    cut_count: int


@dataclass(frozen=True)
class FileCheck:
    """The results for one file of records.

    Attributes:
        path: the file.
        image_root: folder that its image paths are relative to.
        error: why the file cannot be used at all; the records that could be read are counted all the same.
        records: number of records.
        samples: number of usable records; `turns` and `text_only` (samples without an image) refer to these.
        images: number of distinct images the records name, `broken_images` of which are unusable.
        rejected: number of records that would be rejected.
        problems: the problems, sorted by record, at most `MOST_LISTED` per reason; a record may have several.
        problem_counts: number of all problems per reason.
        repeated_ids: records with the id of an earlier one.
        identical: records with the same images and turns as an earlier one.
        levels: number of samples per level.
        without_level: number of samples with an image but without a level.
        expected_levels: number of levels N, if known.
        lengths: token counts, if a model was given.
        not_read: number of records per ignored field.
        notes: number of records per note, such as a dropped turn or moved images.
    """

    path: Path
    image_root: Path
    error: str | None
    records: int
    samples: int
    turns: int
    text_only: int
    images: int
    broken_images: int
    rejected: int
    problems: tuple[Problem, ...]
    problem_counts: dict[str, int]
    repeated_ids: Repeats
    identical: Repeats
    levels: dict[int, int]
    without_level: int
    expected_levels: int | None
    lengths: Lengths | None
    not_read: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether every record would be used."""
        return self.error is None and not self.problems

    def facts(self) -> dict[str, Any]:
        """The results as JSON-compatible values."""
        facts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        facts["problems"] = [one._asdict() for one in self.problems]
        for name, repeats in (("repeated_ids", self.repeated_ids), ("identical", self.identical)):
            facts |= {name: [one._asdict() for one in repeats.listed], f"{name}_count": repeats.count}
        lengths = None if self.lengths is None else self.lengths._asdict()
        paths = {"path": str(self.path), "image_root": str(self.image_root)}
        return facts | paths | {"lengths": lengths}

    def text(self) -> str:
        """The results as lines for the terminal; the records' own texts have no line breaks or control codes there."""
        return "\n".join(printable(line).replace("\n", "\\n") for line in self._lines())

    def _lines(self) -> list[str]:
        if self.error is not None and not self.records:
            return [self.error]
        if self.good:
            title = f"all {_number(self.records, 'record')} can be used"
        elif self.problems:
            title = f"{self.rejected:,} of {_number(self.records, 'record')} would be rejected"
        else:
            title = self.error or ""
        lines = [f"{self.path}: {title}"]
        if self.error is not None and self.problems:
            lines.append(f"  {self.error}")
        lines += [f"  {name:<10}{count:>9,}{remark}" for name, count, remark in self._counts()]
        if 0 < self.images == self.broken_images:
            lines.append(f"  none of the images can be used: is {self.image_root} the right image root?")
        lines += [*self._problem_lines(), *self._level_lines(), *self._length_lines(), *self._repeat_lines()]
        return lines + note_lines(self.not_read, self.notes)

    def _counts(self) -> list[tuple[str, int, str]]:
        share = f" ({self.text_only / self.samples:.1%} of the samples)" if self.samples else ""
        return [
            ("records", self.records, ""),
            ("samples", self.samples, " that can be used"),
            ("turns", self.turns, " in these samples"),
            ("text only", self.text_only, share),
            ("images", self.images, f" distinct, {self.broken_images:,} of which cannot be used"),
        ]

    def _problem_lines(self) -> list[str]:
        by_reason: dict[str, list[Problem]] = defaultdict(list)
        for problem in self.problems:
            by_reason[problem.reason].append(problem)
        lines = []
        for reason, count in sorted(self.problem_counts.items(), key=lambda pair: -pair[1]):
            lines.append(f"  rejected, {reason}: {_number(count, 'record')}")
            lines += [f"    {_name(one.record, one.id)}: {one.detail}" for one in by_reason[reason][:SHOWN]]
            if count > SHOWN:
                lines.append(f"    and {count - SHOWN:,} more")
        return lines

    def _level_lines(self) -> list[str]:
        if not self.levels:
            return []
        having, outside = sum(self.levels.values()), 0
        lines = [
            f"  levels: {having / self.records:.1%} of the records have one; records with an image but no level: "
            f"{self.without_level:,}"
        ]
        shown = dict.fromkeys(range(1, (self.expected_levels or 0) + 1), 0) | self.levels
        for level, count in shown.items():
            if self.expected_levels is not None and level > self.expected_levels:
                outside += count
            else:
                lines.append(f"    level {level:<4}{count:>9,}{count / having:>8.1%}")
        if outside:
            lines.append(f"    outside 1…{self.expected_levels}: {outside:,}")
        return lines

    def _length_lines(self) -> list[str]:
        if self.lengths is None:
            return []
        one = self.lengths
        lines = [
            f"  tokens per sample: at most {one.p50:,} in 50% of the samples, {one.p95:,} in 95%, {one.p99:,} in 99%; "
            f"{one.longest:,} in the longest"
        ]
        if one.cut:
            lines.append(
                f"    {_number(one.cut_count, 'sample')} of more than {one.max_length:,} tokens would lose turns or "
                f"the end of an answer: {_listed(one.cut)}"
            )
        return lines

    def _repeat_lines(self) -> list[str]:
        lines = []
        for repeats, what in ((self.repeated_ids, "the id"), (self.identical, "the images and turns")):
            if repeats.count:
                shown = repeats.listed[:SHOWN]
                examples = "; ".join(f"{_name(one.record, one.id)} repeats {one.earlier}" for one in shown)
                more = "; …" if repeats.count > SHOWN else ""
                lines.append(
                    f"  note: {_number(repeats.count, 'record')} with {what} of an earlier record: {examples}{more}"
                )
        return lines


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _name(record: int, id: str | None) -> str:
    return f"record {record}" if id is None or id == str(record) else f"record {record} (id {id})"


def _listed(records: tuple[int, ...]) -> str:
    return (
        f"record{'' if len(records) == 1 else 's'} "
        + ", ".join(map(str, records[:SHOWN]))
        + (", …" if len(records) > SHOWN else "")
    )
