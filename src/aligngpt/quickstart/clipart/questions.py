"""Questions about drawings, from their file names and keywords: choose the description, and is it a picture of this."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aligngpt.quickstart.clipart.entries import Entry
from aligngpt.quickstart.clipart.wording import content_words

LETTERS = "ABCD"
TRIES = 20
"""Drawings that are looked at, at random, for a wrong description from one folder."""


@dataclass(frozen=True)
class Question:
    """A question about a picture.

    Attributes:
        entry: the picture.
        kind: `options` or `presence`.
        text: the question; of kind `options` with four lines of options.
        answer: a letter, or yes or no.
    """

    entry: Entry
    kind: str
    text: str
    answer: str

    def record(self, number: int) -> dict[str, Any]:
        """As a LLaVA record; the number distinguishes the questions of one kind about a picture."""
        return {
            "id": f"{self.entry.id}-{self.kind}-{number}",
            "image": self.entry.image,
            "conversations": [
                {"from": "human", "value": f"<image>\n{self.text}"},
                {"from": "gpt", "value": self.answer},
            ],
            "question_type": self.kind,
            "scope": "whole",
        }


class Others:
    """Finds pictures whose description is wrong for a given one.

    Args:
        entries: all pictures of a split.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._all = [entry for entry in entries if entry.is_named]
        self._by_folder: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in self._all:
            self._by_folder[entry.folder].append(entry)
        self._words = {entry.id: entry.words for entry in self._all}
        self._names = {entry.id: content_words([entry.name]) for entry in self._all}

    def draw(self, entry: Entry, count: int, rng: random.Random, *, hard: int) -> list[Entry] | None:
        """Other pictures, whose names say something else than the given one and each other.

        A content word of the name of one is then nowhere in what is said about the other. Keywords such as "animal" may
        be the same.

        Args:
            entry: a picture of the split.
            count: how many.
            rng: random numbers.
            hard: how many of them are from the same folder, if it has as many.

        Returns:
            The pictures, those of the same folder first; None if there are too few.
        """
        found: list[Entry] = []
        for pool, wanted in ((self._by_folder[entry.folder], hard), (self._all, count)):
            for other in rng.sample(pool, min(TRIES * count, len(pool))):
                if len(found) >= wanted:
                    break
                if other.series != entry.series and not any(self._alike(other, one) for one in (entry, *found)):
                    found.append(other)
        return found if len(found) == count else None

    def _alike(self, one: Entry, other: Entry) -> bool:
        names, words = self._names, self._words
        return bool(names[one.id] & words[other.id] or names[other.id] & words[one.id])


def write_questions(entries: Sequence[Entry], per_kind: int, rng: random.Random) -> list[Question]:
    """Questions of both kinds about each picture whose file name says what is drawn.

    Yes and no are equally frequent, and so are the letters, up to one. Pictures for which there are too few wrong
    descriptions get none.

    Args:
        entries: the pictures of a split; wrong descriptions are of these too.
        per_kind: questions of each kind about each picture.
        rng: random numbers.
    """
    others = Others(entries)
    letters, yes_no = _Balanced(LETTERS, rng), _Balanced(("yes", "no"), rng)
    written = []
    for entry in entries:
        for _ in range(per_kind if entry.is_named else 0):
            if wrong := others.draw(entry, 3, rng, hard=2):
                written.append(_options(entry, wrong, letters.next(), rng))
            if one := others.draw(entry, 1, rng, hard=rng.randrange(2)):
                answer = yes_no.next()
                shown = entry if answer == "yes" else one[0]
                written.append(Question(entry, "presence", f"is this a picture of {shown.name}?", answer))
    return written


def _options(entry: Entry, wrong: list[Entry], letter: str, rng: random.Random) -> Question:
    options = [other.description for other in wrong]
    rng.shuffle(options)
    options.insert(LETTERS.index(letter), entry.description)
    lines = "\n".join(f"{name}. {option}" for name, option in zip(LETTERS, options, strict=True))
    return Question(
        entry, "options", f"which of these describes the picture?\n{lines}\nanswer with the letter.", letter
    )


class _Balanced:
    """Deals answers out so that their numbers never differ by more than one."""

    def __init__(self, answers: Sequence[str], rng: random.Random) -> None:
        self._answers, self._rng = answers, rng
        self._left: list[str] = []

    def next(self) -> str:
        if not self._left:
            self._left = self._rng.sample(self._answers, len(self._answers))
        return self._left.pop()
