"""Captions that describe their picture badly, in the ways captions from the web do."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from aligngpt.errors import AlignGPTError
from aligngpt.quickstart.scenes.captions import Style, write_caption
from aligngpt.quickstart.scenes.material import CATEGORIES, Thing
from aligngpt.quickstart.scenes.scene import Scene

Noise = Literal["tags", "category", "exchanged-name", "exchanged-position", "other-scene", "language"]

ORACLE_QUALITY: dict[str, float] = {
    "clean": 1.0,
    "language": 0.8,
    "tags": 0.6,
    "category": 0.4,
    "exchanged-name": 0.2,
    "exchanged-position": 0.2,
    "other-scene": 0.0,
}
"""How well a caption of each kind fits its picture, for comparison with scores that a model computes.

An order, not a measurement: from all that is there over less and less of it to a false statement and to no relation.
"""

CHANCES: dict[Noise, int] = {
    "tags": 2,
    "category": 2,
    "exchanged-name": 1,
    "exchanged-position": 1,
    "other-scene": 2,
    "language": 2,
}
"""How often a kind is tried first: each of the five ways equally, the two exchanges together being one."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


class NoiseError(AlignGPTError):
    """The noise asked for is impossible."""


def noisy_places(count: int, seed: int | str) -> list[int]:
    """Order in which pairs become noisy as the share grows: place of each of `count` pairs, from 0.

    The pairs that are noisy at a share are those at places below `share * count`, so those of a smaller share are among
    those of a larger one.
    """
    order = list(range(count))
    random.Random(f"{seed}/noise order").shuffle(order)
    places = [0] * count
    for place, pair in enumerate(order):
        places[pair] = place
    return places


def make_noise(
    scenes: Sequence[Scene], captions: Sequence[str], styles: Sequence[Style], things: Sequence[Thing], seed: int | str
) -> list[tuple[Noise, str]]:
    """A bad caption for each scene. Whether it is used is decided by `noisy_places`.

    Args:
        scenes: the scenes.
        captions: their exact captions, from which other scenes' are taken.
        styles: the styles of `captions`.
        things: all things names may be exchanged for.
        seed: random seed.

    Returns:
        Kind of noise and caption of each scene.

    Raises:
        NoiseError: a scene allows no noise at all, because there are too few things and scenes.
    """
    made = []
    for number, scene in enumerate(scenes):
        rng = random.Random(f"{seed}/noise/{number}")
        made.append(_make(rng, scene, captions[number], styles[number], things, scenes, captions))
    return made


def _make(
    rng: random.Random,
    scene: Scene,
    caption: str,
    style: Style,
    things: Sequence[Thing],
    scenes: Sequence[Scene],
    captions: Sequence[str],
) -> tuple[Noise, str]:
    ways: dict[Noise, Callable[[], str | None]] = {
        "tags": lambda: _tags(rng, scene),
        "category": lambda: _category(scene),
        "exchanged-name": lambda: _exchanged_name(rng, scene, style, things),
        "exchanged-position": lambda: _exchanged_position(rng, scene, style),
        "other-scene": lambda: _other_scene(rng, scene, scenes, captions),
        "language": lambda: _language(rng, scene),
    }
    left = dict(CHANCES)
    while left:
        kind = rng.choices(list(left), list(left.values()))[0]
        del left[kind]
        text = ways[kind]()
        if text is not None and text != caption:
            return kind, text
    raise NoiseError(
        f"no bad caption can be made for {caption!r}: no other scene is without its things, its subgroups have no "
        "other things, and it has neither tags nor foreign names; give more things or more captions"
    )


def _tags(rng: random.Random, scene: Scene) -> str | None:
    """Up to three tags of each thing that has some, and no name."""
    names = {thing.name for thing in scene.kinds}
    tags = [tag for thing in scene.kinds for tag in rng.sample(thing.tags, min(3, len(thing.tags))) if tag not in names]
    return ", ".join(dict.fromkeys(tags)) or None


def _category(scene: Scene) -> str:
    counts = Counter(thing.subgroup for thing in scene.cells if thing is not None)
    return " and ".join(f"{NUMBERS[count]} {CATEGORIES[subgroup][count > 1]}" for subgroup, count in counts.items())


def _exchanged_name(rng: random.Random, scene: Scene, style: Style, things: Sequence[Thing]) -> str | None:
    choices = [
        (kind, other)
        for kind in scene.kinds
        for other in things
        if other.subgroup == kind.subgroup and other not in scene.kinds
    ]
    return write_caption(scene.exchanged(dict([rng.choice(choices)])), style) if choices else None


def _exchanged_position(rng: random.Random, scene: Scene, style: Style) -> str | None:
    """Two things in each other's places, told in a style that tells places, so that the caption is false."""
    if style.beside is not None:
        one, other = (scene.cells[cell] for cell in style.beside[1:])
        assert one is not None and other is not None
    elif len(scene.kinds) > 1:
        one, other = rng.sample(scene.kinds, 2)
        style = Style(style.opening, places=True)
    else:
        return None
    return write_caption(scene.exchanged({one: other, other: one}), style)


def _other_scene(rng: random.Random, scene: Scene, scenes: Sequence[Scene], captions: Sequence[str]) -> str | None:
    """The caption of another scene without any of this one's things, searched from a random place."""
    start = rng.randrange(len(scenes))
    for step in range(len(scenes)):
        number = (start + step) % len(scenes)
        if not set(scenes[number].kinds) & set(scene.kinds):
            return captions[number]
    return None


def _language(rng: random.Random, scene: Scene) -> str | None:
    """The names in another language, one in which each of them differs from the English one."""
    languages = sorted(set.intersection(*(set(thing.foreign) for thing in scene.kinds)))
    if not languages:
        return None
    language = rng.choice(languages)
    return ", ".join(thing.foreign[language] for thing in scene.kinds)
