import random
import re
from typing import get_args

import pytest

from aligngpt.quickstart.scenes.captions import Style, choose_style, write_caption
from aligngpt.quickstart.scenes.material import CATEGORIES, Material
from aligngpt.quickstart.scenes.noise import Noise, NoiseError, make_noise, noisy_places
from aligngpt.quickstart.scenes.scene import PLACES, Scene, SceneRules

Made = list[tuple[Scene, Style, str, Noise, str]]


@pytest.fixture(scope="module")
def made(material: Material) -> Made:
    """400 scenes with style, caption, and kind and text of a bad caption."""
    rules = SceneRules(material.seen, ("seen",), frozenset())
    scenes = [rules.draw(random.Random(number)) for number in range(400)]
    styles = [choose_style(scene, random.Random(number)) for number, scene in enumerate(scenes)]
    captions = [write_caption(scene, style) for scene, style in zip(scenes, styles, strict=True)]
    noises = make_noise(scenes, captions, styles, material.seen, 0)
    return [
        (scene, style, caption, *noise)
        for scene, style, caption, noise in zip(scenes, styles, captions, noises, strict=True)
    ]


def of_kind(made: Made, kind: Noise) -> list[tuple[Scene, Style, str, str]]:
    found = [(scene, style, caption, text) for scene, style, caption, one, text in made if one == kind]
    assert len(found) >= 15
    return found


def places_told(scene: Scene, caption: str) -> dict[str, set[str]]:
    """By name, the places that a caption with places tells, read from its text."""
    parts = re.split("|".join(f"({thing.name}) in the " for thing in scene.kinds), caption)
    found = [part for part in parts[1:] if part is not None]
    return {
        name: set(re.findall("|".join(PLACES[scene.side]), text))
        for name, text in zip(found[::2], found[1::2], strict=True)
    }


def test_every_kind_occurs_and_none_is_the_exact_caption(made: Made) -> None:
    assert {kind for _, _, _, kind, _ in made} == set(get_args(Noise))
    assert all(text != caption for _, _, caption, _, text in made)


def test_an_exchanged_name_is_of_the_same_subgroup_and_not_in_the_picture(made: Made, material: Material) -> None:
    for scene, _, caption, text in of_kind(made, "exchanged-name"):
        told = {thing for thing in material.things if thing.name in text}
        exact = {thing for thing in material.things if thing.name in caption}
        (new,), (old,) = told - exact, exact - told
        assert new.subgroup == old.subgroup
        assert new not in scene.kinds
        assert len(told) == len(exact)


def test_exchanged_positions_are_false_of_the_picture(made: Made) -> None:
    for scene, style, _, text in of_kind(made, "exchanged-position"):
        if style.beside is not None:
            direction, first, second = style.beside
            one, other = scene.cells[first], scene.cells[second]
            assert one is not None and other is not None
            where, what = text.split(f" directly {direction} ")
            assert where.endswith(other.name)
            assert one.name in what.split(",")[0]
        else:
            told = places_told(scene, text)
            assert told.keys() == {thing.name for thing in scene.kinds}
            actual = {thing.name: {scene.place(cell) for cell in scene.cells_of(thing)} for thing in scene.kinds}
            wrong = [name for name in told if told[name] != actual[name]]
            assert len(wrong) == 2
            assert (told[wrong[0]], told[wrong[1]]) == (actual[wrong[1]], actual[wrong[0]])


def test_another_scenes_caption_names_nothing_of_this_one(made: Made) -> None:
    captions = {caption for _, _, caption, _, _ in made}
    for scene, _, _, text in of_kind(made, "other-scene"):
        assert text in captions
        assert not any(thing.name in text for thing in scene.kinds)


def test_tags_categories_and_other_languages_leave_the_names_out(made: Made) -> None:
    for scene, _, _, text in of_kind(made, "tags"):
        assert sorted(text.split(", ")) == sorted(f"tag of {thing.name}" for thing in scene.kinds)
    for scene, _, _, text in of_kind(made, "language"):
        assert text.split(", ") == [f"{thing.name} auf Deutsch" for thing in scene.kinds]
    for scene, _, _, text in of_kind(made, "category"):
        assert not any(thing.name in text for thing in scene.kinds)
        assert all(CATEGORIES[thing.subgroup][0] in text for thing in scene.kinds)


def test_pairs_noisy_at_a_share_are_noisy_at_every_larger_one() -> None:
    places = noisy_places(50, seed=3)
    assert sorted(places) == list(range(50))
    assert places != noisy_places(50, seed=4)


def test_a_scene_that_allows_no_noise_is_an_error(material: Material) -> None:
    wolf = material.things[0]
    bare = type(wolf)(wolf.code, wolf.name, wolf.subgroup)
    scene = Scene(2, (bare, None, None, None), "seen", "#ffffff")
    kinds = {kind for seed in range(30) for kind, _ in make_noise([scene], ["a wolf"], [Style()], [bare], seed)}
    assert kinds == {"category"}
    with pytest.raises(NoiseError, match=r"no bad caption can be made for 'one mammal'"):
        make_noise([scene], ["one mammal"], [Style()], [bare], 0)
