"""A scene: which thing is in which cell of a grid, by which hand and on which background; and drawing one at random."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from aligngpt.quickstart.scenes.material import Thing

BACKGROUNDS = ("#cfe8f7", "#d5ecc8", "#f7e3a8", "#f3cfd9", "#dccdf0", "#b9c4cc", "#d8c3a5", "#9fd3c7")
"""Light enough for dark things, and none of them white, which some things are."""

MOST_KINDS = 4
MOST_THINGS = {2: 4, 3: 6}
"""Most things in a picture, by cells a side."""

HELD_OUT_SHARE = 0.1
"""Share of the pairs of different subgroups that are never together in training."""

SAME_SUBGROUP_SHARE = 0.5
"""Share of further kinds drawn from the subgroup of an earlier kind, so that a scene needs telling its things apart."""

PLACES = {
    2: ("top left", "top right", "bottom left", "bottom right"),
    3: (
        *("top left", "top middle", "top right"),
        *("middle left", "centre", "middle right"),
        *("bottom left", "bottom middle", "bottom right"),
    ),
}
"""Names of the cells in reading order, by cells a side."""

Direction = Literal["left of", "right of", "above", "below"]
STEPS: dict[Direction, tuple[int, int]] = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
"""Rows and columns from a thing to the one that is so placed beside it."""

Pair = frozenset[str]
"""Two different subgroups."""


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        side: cells a side, 2 or 3.
        cells: the thing in each cell in reading order, None if it is empty.
        hand: name of the hand that draws it.
        background: a plain colour as `#rrggbb`.
    """

    side: int
    cells: tuple[Thing | None, ...]
    hand: str
    background: str

    @property
    def kinds(self) -> tuple[Thing, ...]:
        """The different things, in the order of their first cells."""
        return tuple(dict.fromkeys(thing for thing in self.cells if thing is not None))

    @property
    def occupied(self) -> tuple[int, ...]:
        return tuple(cell for cell, thing in enumerate(self.cells) if thing is not None)

    def cells_of(self, thing: Thing) -> tuple[int, ...]:
        return tuple(cell for cell, other in enumerate(self.cells) if other == thing)

    def place(self, cell: int) -> str:
        """Name of a cell, such as "top left"."""
        return PLACES[self.side][cell]

    def beside(self, cell: int, direction: Direction) -> int | None:
        """The cell directly left of (…) a cell, if the grid has one."""
        rows, columns = STEPS[direction]
        row, column = cell // self.side + rows, cell % self.side + columns
        return row * self.side + column if 0 <= row < self.side and 0 <= column < self.side else None

    def exchanged(self, by: dict[Thing, Thing]) -> "Scene":
        """The same scene with every thing that is a key of `by` replaced by its value."""
        cells = tuple(thing if thing is None else by.get(thing, thing) for thing in self.cells)
        return Scene(self.side, cells, self.hand, self.background)


def held_out_pairs(subgroups: Sequence[str], seed: int) -> frozenset[Pair]:
    """The pairs of subgroups that are never together in a training picture: a tenth of all, at least one."""
    pairs = [frozenset(pair) for pair in combinations(sorted(set(subgroups)), 2)]
    count = min(len(pairs), max(1, round(HELD_OUT_SHARE * len(pairs))))
    return frozenset(random.Random(f"{seed}/held-out pairs").sample(pairs, count))


@dataclass(frozen=True)
class SceneRules:
    """What the scenes of a split may show.

    Attributes:
        things: the things to draw from.
        hands: names of the hands to draw from; each scene is by one.
        held_out: pairs of subgroups kept apart.
        only_held_out: whether each scene has a pair of `held_out` instead of none.
    """

    things: tuple[Thing, ...]
    hands: tuple[str, ...]
    held_out: frozenset[Pair]
    only_held_out: bool = False

    def draw(self, rng: random.Random) -> Scene:
        """A random scene of one to four kinds of things, with one to four things in 2 × 2 or up to six in 3 × 3."""
        side = rng.choice((2, 3))
        kinds = self._draw_kinds(rng, rng.randint(2 if self.only_held_out else 1, MOST_KINDS))
        total = rng.randint(len(kinds), MOST_THINGS[side])
        # Mostly one kind is repeated, so that one of them appears most often.
        repeated = rng.choice(kinds)
        spread = rng.random() < 0.3
        extra = [rng.choice(kinds) if spread else repeated for _ in range(total - len(kinds))]
        cells: list[Thing | None] = [None] * side**2
        for cell, thing in zip(rng.sample(range(side**2), total), [*kinds, *extra], strict=True):
            cells[cell] = thing
        return Scene(side, tuple(cells), rng.choice(self.hands), rng.choice(BACKGROUNDS))

    def _draw_kinds(self, rng: random.Random, count: int) -> list[Thing]:
        by_subgroup: defaultdict[str, list[Thing]] = defaultdict(list)
        for thing in self.things:
            by_subgroup[thing.subgroup].append(thing)
        if self.only_held_out:
            pair = sorted(rng.choice(sorted(sorted(pair) for pair in self.held_out)))
            kinds = [rng.choice(by_subgroup[subgroup]) for subgroup in pair]
        else:
            kinds = [rng.choice(self.things)]
        while len(kinds) < count:
            pool: Sequence[Thing] = self.things
            if rng.random() < SAME_SUBGROUP_SHARE:
                pool = by_subgroup[rng.choice(kinds).subgroup]
            fitting = [thing for thing in pool if thing not in kinds and self._may_join(thing, kinds)]
            if not fitting:
                fitting = [thing for thing in self.things if thing not in kinds and self._may_join(thing, kinds)]
            if not fitting:
                break
            kinds.append(rng.choice(fitting))
        return kinds

    def _may_join(self, thing: Thing, kinds: Sequence[Thing]) -> bool:
        if self.only_held_out:
            return True
        return all(frozenset((thing.subgroup, other.subgroup)) not in self.held_out for other in kinds)
