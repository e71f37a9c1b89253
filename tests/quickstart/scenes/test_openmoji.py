import json
from pathlib import Path

import pytest

from aligngpt.quickstart.packages import PackageError
from aligngpt.quickstart.scenes.material import CATEGORIES, MaterialError
from aligngpt.quickstart.scenes.openmoji import font_hand, pypi_material, read_things


def test_things_are_read_from_the_files_of_emoji_packages(tmp_path: Path) -> None:
    files = {
        "subgroups": [
            {"unified": "1F43A", "subcategory": "animal-mammal"},
            {"unified": "1F426-200D-2B1B", "subcategory": "animal-bird"},
        ],
        "names": {
            "\U0001f43a": {"en": ":wolf:", "status": 2, "alias": [":grey_wolf:", ":canine:"]},
            "\U0001f426\u200d\u2b1b": {"en": ":black_bird:", "status": 2},
            "\U0001f426": {"en": ":bird:", "status": 4},
            "\U0001f400": {"en": ":rat:", "status": 2},
        },
        "de": {"\U0001f43a": ":wolf:", "\U0001f426\u200d\u2b1b": ":schwarzer_vogel:"},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    wolf, bird = read_things(tmp_path / "subgroups", tmp_path / "names", {"de": tmp_path / "de"})
    assert (wolf.code, wolf.name, wolf.tags, wolf.foreign) == ("1f43a", "wolf", ("canine",), {})
    assert (bird.code, bird.name, bird.foreign) == ("1f426-200d-2b1b", "black bird", {"de": "schwarzer vogel"})


def test_a_file_that_is_no_font_is_named(tmp_path: Path) -> None:
    (tmp_path / "font.ttf").write_bytes(b"none")
    with pytest.raises(MaterialError, match=r"font\.ttf cannot be read as a font"):
        font_hand(tmp_path / "font.ttf", frozenset({"1f43a"})).draw("1f43a", 26)


@pytest.mark.medium
def test_the_real_material() -> None:
    try:
        material = pypi_material()
    except PackageError as error:
        pytest.skip(str(error))
    assert len(material.things) > 200
    assert {thing.subgroup for thing in material.things} == set(CATEGORIES)
    assert material.unseen_hand is None
    (hand,) = material.hands
    for thing in material.things[::10]:
        assert hand.draw(thing.code, 26).getbbox() is not None, thing.name
