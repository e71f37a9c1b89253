from collections.abc import Callable
from dataclasses import replace

from aligngpt.quickstart.scenes.material import Material, Thing, choose_things, foreign_names, tags_beside_name


def test_only_things_that_every_hand_draws_are_chosen(make_material: Callable[[bool], Material]) -> None:
    material = make_material(True)
    assert material.unseen_hand is not None
    without_wolf = replace(material.unseen_hand, codes=material.unseen_hand.codes - {material.things[0].code})
    chosen = choose_things(material.things, (*material.hands, without_wolf))
    assert chosen == tuple(sorted(material.things[1:], key=lambda thing: thing.code))


def test_things_left_out_of_no_category_or_of_a_name_twice_are_not_chosen(
    make_material: Callable[[bool], Material],
) -> None:
    material = make_material(False)
    (hand,) = material.hands
    extra = [
        Thing("1", "poodle", "animal-mammal"),
        Thing("2", "arrow", "arrow"),
        Thing("3", material.things[0].name, "animal-mammal"),
    ]
    hand = replace(hand, codes=hand.codes | {"1", "2", "3"})
    names = [thing.name for thing in choose_things((*extra, *material.things), [hand])]
    assert sorted(names) == sorted(thing.name for thing in material.things)


def test_tags_that_repeat_a_word_of_the_name_are_no_tags() -> None:
    assert tags_beside_name("T-Rex", ("t-rex", "Tyrannosaurus Rex", "dinosaur")) == ("dinosaur",)


def test_names_that_are_the_same_in_another_language_are_not_foreign() -> None:
    assert foreign_names("taco", {"de": "Taco", "fr": "tacos", "it": ""}) == {"fr": "tacos"}
