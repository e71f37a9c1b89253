"""Captions that describe a scene exactly, from templates over the names of its things."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from aligngpt.quickstart.scenes.material import Thing
from aligngpt.quickstart.scenes.scene import STEPS, Direction, Scene

OPENINGS = ("", "a picture of ", "the picture shows ", "we see ")
TIMES = {2: "twice", 3: "three times", 4: "four times", 5: "five times", 6: "six times"}
WITHOUT_ARTICLE = frozenset({"bacon", "popcorn", "broccoli", "garlic", "soap", "ginger root"})
SINGULAR_IN_S = ("ss", "us", "os")


@dataclass(frozen=True)
class Style:
    """How a caption tells a scene.

    Attributes:
        opening: words before the first thing.
        places: whether each thing is told with its places; otherwise with how often it appears.
        beside: a direction and two cells: the thing in the first is so placed beside that in the second, and both
            appear once. None for a caption that tells no such pair.
    """

    opening: str = ""
    places: bool = False
    beside: tuple[Direction, int, int] | None = None


def choose_style(scene: Scene, rng: random.Random) -> Style:
    """A random style: places, counts, or two neighbours if the scene has some that appear once."""
    opening = rng.choice(OPENINGS)
    pairs = neighbours(scene)
    chosen = rng.choice(("places", "counts", "beside") if pairs else ("places", "counts"))
    if chosen == "beside":
        return Style(opening, beside=rng.choice(pairs))
    return Style(opening, places=chosen == "places")


def neighbours(scene: Scene) -> list[tuple[Direction, int, int]]:
    """All directions and cells (a, b) such that a is so placed directly beside b and both things appear once."""
    single = [cell for thing in scene.kinds if len(cells := scene.cells_of(thing)) == 1 for cell in cells]
    return [
        (direction, other, cell)
        for cell in sorted(single)
        for direction in STEPS
        if (other := scene.beside(cell, direction)) is not None and other in single
    ]


def write_caption(scene: Scene, style: Style) -> str:
    """The caption of a scene in a style; it names every thing and is true of the scene."""
    parts: list[str] = []
    told: set[Thing] = set()
    if style.beside is not None:
        direction, first, second = style.beside
        one, other = scene.cells[first], scene.cells[second]
        assert one is not None and other is not None
        parts.append(f"{with_article(one.name)} directly {direction} {with_article(other.name)}")
        told = {one, other}
    for thing in scene.kinds:
        if thing not in told:
            parts.append(_tell(scene, thing, style.places))
    return style.opening + _joined(parts, ", and ")


def with_article(name: str) -> str:
    """ "wolf" → "a wolf", "owl" → "an owl"; names in the plural and of materials get no article."""
    # The sound decides, not the letter: "a unicorn".
    vowel = name[0].lower() in "aeiou" and not name.lower().startswith(("uni", "eu", "one"))
    return name if is_plural(name) or name in WITHOUT_ARTICLE else f"{'an' if vowel else 'a'} {name}"


def is_plural(name: str) -> bool:
    """Whether a name is in the plural, such as "grapes"; told by its last letters, which suffices for our things."""
    return name.endswith("s") and not name.endswith(SINGULAR_IN_S)


def _tell(scene: Scene, thing: Thing, places: bool) -> str:
    cells = scene.cells_of(thing)
    if places:
        return f"{with_article(thing.name)} in the {_joined([scene.place(cell) for cell in cells], ' and the ')}"
    return with_article(thing.name) + (f" {TIMES[len(cells)]}" if len(cells) > 1 else "")


def _joined(parts: Sequence[str], last: str) -> str:
    if len(parts) == 1:
        return parts[0]
    comma = ", the " if last == " and the " else ", "
    return comma.join(parts[:-1]) + last + parts[-1]
