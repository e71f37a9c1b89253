import pytest

from aligngpt.quickstart.scenes.captions import Style, neighbours, with_article, write_caption
from aligngpt.quickstart.scenes.material import Material, Thing
from aligngpt.quickstart.scenes.scene import Scene


@pytest.fixture
def scene(material: Material) -> Scene:
    """A wolf, an axe and a wolf in the first row, grapes in the centre."""
    thing = {one.name: one for one in material.things}
    cells: tuple[Thing | None, ...] = (thing["wolf"], thing["axe"], thing["wolf"], None, thing["grapes"], *(None,) * 4)
    return Scene(3, cells, "seen", "#ffffff")


def test_captions_tell_counts(scene: Scene) -> None:
    assert write_caption(scene, Style("a picture of ")) == "a picture of a wolf twice, an axe, and grapes"


def test_captions_tell_places(scene: Scene) -> None:
    told = "a wolf in the top left and the top right, an axe in the top middle, and grapes in the centre"
    assert write_caption(scene, Style(places=True)) == told


def test_captions_tell_neighbours_that_appear_once(scene: Scene) -> None:
    assert set(neighbours(scene)) == {("above", 1, 4), ("below", 4, 1)}
    told = "an axe directly above grapes, and a wolf twice"
    assert write_caption(scene, Style(beside=("above", 1, 4))) == told


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owl", "an owl"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("jeans", "jeans"),
        ("wine glass", "a wine glass"),
        ("octopus", "an octopus"),
        ("rhinoceros", "a rhinoceros"),
        ("bacon", "bacon"),
    ],
)
def test_names_get_the_article_they_need(name: str, expected: str) -> None:
    assert with_article(name) == expected
