"""What a look at a file of records has found, and how a terminal shows it."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aligngpt.checking.notes import note_lines

SHOWN = 3
"""Examples of each reason; a file of results names all of them."""


class Problem(NamedTuple):
    """Why a record would be rejected: its number from 0, its own id where it has one, reason and details."""

    record: int
    id: str | None
    reason: str
    detail: str


class Repeat(NamedTuple):
    """A record that repeats an earlier one: both numbers from 0, and its id."""

    record: int
    earlier: int
    id: str


class Lengths(NamedTuple):
    """Tokens of the samples, in full.

    Attributes:
        p50, p95, p99: as long or shorter are this many of a hundred samples.
        longest: of all.
        max_length: what longer samples are cut to.
        cut: numbers of the records that lose turns or the end of their answer so.
    """

    p50: int
    p95: int
    p99: int
    longest: int
    max_length: int
    cut: tuple[int, ...]


@dataclass(frozen=True)
class FileCheck:
    """One file of records.

    Attributes:
        path: of the file.
        image_root: folder that its image paths start from.
        error: why it cannot be used at all; what could be read of it is counted all the same.
        records: how many there are.
        samples: how many of them would be used; `turns` and `text_only` (samples without image) are theirs.
        images: how many different ones the records name, `broken_images` of which cannot be used.
        problems: all of them, by record; a record may have several.
        repeated_ids: records that name an id which an earlier one has.
        identical: records with the images and turns of an earlier one.
        levels: how many samples are of each level.
        without_level: samples with an image that have none.
        expected_levels: N, where it is known.
        lengths: in tokens, where a model was given.
        not_read: how many records have a field that their sample is made without.
        notes: how many records lose a turn, or have pictures moved, by what is noted.
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
    problems: tuple[Problem, ...]
    repeated_ids: tuple[Repeat, ...]
    identical: tuple[Repeat, ...]
    levels: dict[int, int]
    without_level: int
    expected_levels: int | None
    lengths: Lengths | None
    not_read: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def rejected(self) -> int:
        """How many records would be rejected."""
        return len({problem.record for problem in self.problems})

    @property
    def good(self) -> bool:
        """Whether every record would be used."""
        return self.error is None and not self.problems

    def facts(self) -> dict[str, Any]:
        """All that was found, in types that JSON has."""
        facts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        facts |= {name: [one._asdict() for one in facts[name]] for name in ("problems", "repeated_ids", "identical")}
        lengths = None if self.lengths is None else self.lengths._asdict()
        paths = {"path": str(self.path), "image_root": str(self.image_root)}
        return facts | paths | {"rejected": self.rejected, "lengths": lengths}

    def text(self) -> str:
        """What was found, as lines for a terminal."""
        if self.error is not None and not self.records:
            return self.error
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
            lines.append(f"  not one image can be used: is {self.image_root} the right image root?")
        lines += [*self._problem_lines(), *self._level_lines(), *self._length_lines(), *self._repeat_lines()]
        lines += note_lines(self.not_read, self.notes)
        return "\n".join(lines)

    def _counts(self) -> list[tuple[str, int, str]]:
        share = f" ({self.text_only / self.samples:.1%} of the samples)" if self.samples else ""
        return [
            ("records", self.records, ""),
            ("samples", self.samples, " that can be used"),
            ("turns", self.turns, " in these"),
            ("text only", self.text_only, share),
            ("images", self.images, f" different, {self.broken_images:,} of which cannot be used"),
        ]

    def _problem_lines(self) -> list[str]:
        by_reason: dict[str, list[Problem]] = defaultdict(list)
        for problem in self.problems:
            by_reason[problem.reason].append(problem)
        lines = []
        for reason, problems in sorted(by_reason.items(), key=lambda pair: -len(pair[1])):
            lines.append(f"  rejected, {reason}: {_number(len(problems), 'record')}")
            lines += [f"    {_name(one.record, one.id)}: {one.detail}" for one in problems[:SHOWN]]
            if len(problems) > SHOWN:
                lines.append(f"    and {len(problems) - SHOWN:,} more")
        return lines

    def _level_lines(self) -> list[str]:
        if not self.levels:
            return []
        having, outside = sum(self.levels.values()), 0
        lines = [
            f"  levels: {having / self.records:.1%} of the records have one, {self.without_level:,} with an image "
            "have none"
        ]
        shown = dict.fromkeys(range(1, (self.expected_levels or 0) + 1), 0) | self.levels
        for level, count in shown.items():
            if self.expected_levels is not None and level > self.expected_levels:
                outside += count
            else:
                lines.append(f"    level {level:<4}{count:>9,}{count / having:>8.1%}")
        if outside:
            lines.append(f"    outside of 1…{self.expected_levels}: {outside:,}")
        return lines

    def _length_lines(self) -> list[str]:
        if self.lengths is None:
            return []
        one = self.lengths
        lines = [
            f"  tokens: {one.p50:,} or less in 50 % of the samples, {one.p95:,} in 95 %, {one.p99:,} in 99 %; "
            f"{one.longest:,} in the longest"
        ]
        if one.cut:
            lines.append(
                f"    {_number(len(one.cut), 'sample')} of more than {one.max_length:,} tokens would lose turns or the "
                f"end of an answer: {_listed(one.cut)}"
            )
        return lines

    def _repeat_lines(self) -> list[str]:
        lines = []
        for repeats, what in ((self.repeated_ids, "the id"), (self.identical, "the images and turns")):
            if repeats:
                examples = "; ".join(f"{_name(one.record, one.id)} as {one.earlier}" for one in repeats[:SHOWN])
                more = "; …" if len(repeats) > SHOWN else ""
                lines.append(
                    f"  note: {_number(len(repeats), 'record')} with {what} of an earlier one: {examples}{more}"
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
