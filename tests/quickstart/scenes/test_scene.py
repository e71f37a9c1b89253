import random

import pytest

from aligngpt.quickstart.scenes.material import Material
from aligngpt.quickstart.scenes.scene import MOST_KINDS, MOST_THINGS, Pair, Scene, SceneRules, held_out_pairs


def pairs_of(scene: Scene) -> set[Pair]:
    subgroups = {thing.subgroup for thing in scene.kinds}
    return {frozenset((one, other)) for one in subgroups for other in subgroups if one != other}


def draw(material: Material, only_held_out: bool = False, count: int = 300) -> tuple[list[Scene], frozenset[Pair]]:
    held_out = held_out_pairs([thing.subgroup for thing in material.seen], seed=1)
    rules = SceneRules(material.seen, ("seen", "other"), held_out, only_held_out)
    return [rules.draw(random.Random(f"1/{number}")) for number in range(count)], held_out


def test_held_out_pairs_are_in_no_training_scene(material: Material) -> None:
    scenes, held_out = draw(material)
    assert held_out
    assert not any(pairs_of(scene) & held_out for scene in scenes)
    # The other pairs do meet, so that the split tests the combination and not that there is any.
    assert len(set.union(*(pairs_of(scene) for scene in scenes))) == 6 - len(held_out)


def test_held_out_pairs_are_in_every_scene_of_their_split(material: Material) -> None:
    scenes, held_out = draw(material, only_held_out=True)
    assert all(pairs_of(scene) & held_out for scene in scenes)


def test_scenes_keep_to_their_bounds_and_reach_them(material: Material) -> None:
    scenes, _ = draw(material)
    for side in (2, 3):
        counts = [len(scene.occupied) for scene in scenes if scene.side == side]
        assert (min(counts), max(counts)) == (1, MOST_THINGS[side])
    assert {len(scene.kinds) for scene in scenes} == set(range(1, MOST_KINDS + 1))
    assert {scene.hand for scene in scenes} == {"seen", "other"}


def test_a_seed_always_draws_the_same_scene(material: Material) -> None:
    assert draw(material, count=20) == draw(material, count=20)


@pytest.mark.parametrize(
    ("cell", "direction", "expected"),
    [(4, "left of", 3), (4, "above", 1), (2, "right of", None), (3, "left of", None), (7, "below", None)],
)
def test_the_cell_beside_another(material: Material, cell: int, direction: str, expected: int | None) -> None:
    scene = Scene(3, (None,) * 9, "seen", "#ffffff")
    assert scene.beside(cell, direction) == expected  # type: ignore[arg-type]
