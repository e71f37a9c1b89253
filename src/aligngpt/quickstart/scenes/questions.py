"""Questions about a scene with short answers, each of one kind and about the whole picture or a part of it."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from aligngpt.quickstart.scenes.captions import is_plural, neighbours, with_article
from aligngpt.quickstart.scenes.material import Thing
from aligngpt.quickstart.scenes.scene import Scene

Scope = Literal["whole", "part"]
Choice = TypeVar("Choice", bound=Hashable)
LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """A question about a picture.

    Attributes:
        kind: one of `KINDS`.
        text: the question; of kind `options` with four lines of options.
        answer: the short answer.
    """

    kind: str
    text: str
    answer: str

    @property
    def scope(self) -> Scope:
        return KINDS[self.kind]


class QuestionWriter:
    """Writes the questions of one split, balancing the answers of those kinds that leave a choice.

    Args:
        things: all things that may be named as absent or as options.
    """

    def __init__(self, things: Sequence[Thing]) -> None:
        self._by_subgroup: defaultdict[str, list[Thing]] = defaultdict(list)
        for thing in things:
            self._by_subgroup[thing.subgroup].append(thing)
        self._answers: defaultdict[str, Counter[Hashable]] = defaultdict(Counter)

    def write(self, scene: Scene, count: int, rng: random.Random) -> list[Question]:
        """Up to `count` questions of different kinds about a scene, each about equally likely of those it allows."""
        written: list[Question] = []
        for kind in rng.sample(list(KINDS), len(KINDS)):
            if len(written) == count:
                break
            made = _WRITERS[kind](self, scene, rng)
            if made is not None:
                written.append(Question(kind, *made))
        return written

    def _rarest(self, kind: str, choices: Sequence[Choice], rng: random.Random) -> Choice:
        """The choice used least often so far; a random one of several."""
        counts = self._answers[kind]
        fewest = min(counts[choice] for choice in choices)
        chosen = rng.choice([choice for choice in choices if counts[choice] == fewest])
        counts[chosen] += 1
        return chosen

    def _absent(self, scene: Scene, thing: Thing) -> list[Thing]:
        return [other for other in self._by_subgroup[thing.subgroup] if other not in scene.kinds]

    def _count(self, scene: Scene, rng: random.Random) -> tuple[str, str]:
        return "how many things are in the picture?", str(len(scene.occupied))

    def _count_kinds(self, scene: Scene, rng: random.Random) -> tuple[str, str]:
        return "how many different kinds of things are in the picture?", str(len(scene.kinds))

    def _most(self, scene: Scene, rng: random.Random) -> tuple[str, str] | None:
        counts = Counter(thing for thing in scene.cells if thing is not None).most_common(2)
        if len(counts) < 2 or counts[0][1] == counts[1][1]:
            return None
        return "which thing appears most often in the picture?", counts[0][0].name

    def _times(self, scene: Scene, rng: random.Random) -> tuple[str, str]:
        by_count: defaultdict[int, list[Thing]] = defaultdict(list)
        for thing in scene.kinds:
            by_count[len(scene.cells_of(thing))].append(thing)
        count = self._rarest("times", sorted(by_count), rng)
        return f"how many times does the picture show {with_article(rng.choice(by_count[count]).name)}?", str(count)

    def _presence(self, scene: Scene, rng: random.Random) -> tuple[str, str] | None:
        thing = rng.choice(scene.kinds)
        absent = self._absent(scene, thing)
        if not absent:
            return None
        answer = self._rarest("presence", ("yes", "no"), rng)
        asked = thing if answer == "yes" else rng.choice(absent)
        return f"does the picture show {with_article(asked.name)}?", answer

    def _beside(self, scene: Scene, rng: random.Random) -> tuple[str, str] | None:
        pairs = neighbours(scene)
        if not pairs:
            return None
        direction, first, second = rng.choice(pairs)
        return f"what is directly {direction} the {_at(scene, second).name}?", _at(scene, first).name

    def _place(self, scene: Scene, rng: random.Random) -> tuple[str, str]:
        cell = rng.choice(scene.occupied)
        return f"what is in the {scene.place(cell)}?", _at(scene, cell).name

    def _where(self, scene: Scene, rng: random.Random) -> tuple[str, str] | None:
        single = [cells[0] for thing in scene.kinds if len(cells := scene.cells_of(thing)) == 1]
        if not single:
            return None
        cell = rng.choice(single)
        name = _at(scene, cell).name
        return f"where {'are' if is_plural(name) else 'is'} the {name}?", scene.place(cell)

    def _category(self, scene: Scene, rng: random.Random) -> tuple[str, str]:
        cell = rng.choice(scene.occupied)
        return f"which category does the thing in the {scene.place(cell)} belong to?", _at(scene, cell).category

    def _same(self, scene: Scene, rng: random.Random) -> tuple[str, str] | None:
        pairs: dict[str, list[tuple[int, int]]] = {"yes": [], "no": []}
        for first in scene.occupied:
            for second in scene.occupied:
                if first < second:
                    pairs["yes" if scene.cells[first] == scene.cells[second] else "no"].append((first, second))
        # Only where both answers are possible: otherwise the number of things would tell the answer.
        if not (pairs["yes"] and pairs["no"]):
            return None
        answer = self._rarest("same", ("yes", "no"), rng)
        one, other = (scene.place(cell) for cell in rng.choice(pairs[answer]))
        return f"are the things in the {one} and in the {other} the same?", answer

    def _options(self, scene: Scene, rng: random.Random) -> tuple[str, str] | None:
        cell = rng.choice(scene.occupied)
        right = _at(scene, cell)
        present = [thing for thing in scene.kinds if thing != right]
        absent = self._absent(scene, right)
        if len(present) + len(absent) < 3:
            return None
        # At most two that are elsewhere in the picture, so that both the place and the thing have to be recognised.
        wrong = rng.sample(present, min(2, len(present)))
        wrong += rng.sample(absent, min(3 - len(wrong), len(absent)))
        if len(wrong) < 3:
            return None
        rng.shuffle(wrong)
        letter = self._rarest("options", LETTERS, rng)
        wrong.insert(LETTERS.index(letter), right)
        options = "\n".join(f"{name}. {thing.name}" for name, thing in zip(LETTERS, wrong, strict=True))
        return f"which of these is in the {scene.place(cell)}?\n{options}\nanswer with the letter.", letter


KINDS: dict[str, Scope] = {
    "count": "whole",
    "count-kinds": "whole",
    "most": "whole",
    "times": "whole",
    "presence": "part",
    "beside": "part",
    "place": "part",
    "where": "part",
    "category": "part",
    "same": "part",
    "options": "part",
}
"""Kinds of questions, and whether the whole picture or a part of it answers them."""

_WRITERS: dict[str, Callable[[QuestionWriter, Scene, random.Random], tuple[str, str] | None]] = {
    "count": QuestionWriter._count,
    "count-kinds": QuestionWriter._count_kinds,
    "most": QuestionWriter._most,
    "times": QuestionWriter._times,
    "presence": QuestionWriter._presence,
    "beside": QuestionWriter._beside,
    "place": QuestionWriter._place,
    "where": QuestionWriter._where,
    "category": QuestionWriter._category,
    "same": QuestionWriter._same,
    "options": QuestionWriter._options,
}


def priors(questions: Sequence[Question]) -> dict[str, float]:
    """By kind: share of questions that the most frequent answer of the kind answers."""
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        answers[question.kind][question.answer] += 1
    return {kind: round(max(answers[kind].values()) / answers[kind].total(), 4) for kind in KINDS if answers[kind]}


def _at(scene: Scene, cell: int) -> Thing:
    thing = scene.cells[cell]
    assert thing is not None
    return thing
