import json
from pathlib import Path

import pytest

from aligngpt.cache import cache_folder
from aligngpt.quickstart.scenes import iconify
from aligngpt.quickstart.scenes.iconify import npm_material, read_hand, read_things
from aligngpt.quickstart.scenes.material import CATEGORIES, LEFT_OUT, MaterialError
from aligngpt.quickstart.scenes.npm_packages import NpmPackage, entry_of, fetch

USERS_CACHE = cache_folder("npm")
"""The tests themselves get an empty cache."""

PACKAGE = NpmPackage("@iconify-json/tiny", "1.0.0", "MIT", "0" * 64)


def test_a_hand_draws_icons_also_under_their_other_names_and_keeps_their_shape(iconify_folder: Path) -> None:
    pytest.importorskip("resvg_py", reason="resvg-py is not installed")
    hand = read_hand(iconify_folder, PACKAGE)
    assert (hand.name, hand.licence) == ("tiny", "MIT")
    assert hand.codes == {"1f43a", "1f98a", "1f400"}
    wolf, fox = hand.draw("1f43a", 20), hand.draw("1f98a", 20)
    assert wolf.size == fox.size == (20, 20)
    assert wolf.getpixel((1, 1)) == (255, 0, 0, 255)
    assert fox.getpixel((1, 1)) == (0, 0, 0, 0)
    assert fox.getpixel((1, 10)) == (0, 0, 255, 255)


def test_an_icon_that_cannot_be_drawn_is_named(iconify_folder: Path) -> None:
    pytest.importorskip("resvg_py", reason="resvg-py is not installed")
    with pytest.raises(MaterialError, match=r"broken of @iconify-json/tiny@1\.0\.0 cannot be drawn"):
        read_hand(iconify_folder, PACKAGE).draw("1f400", 20)


def test_things_have_their_subgroup_and_only_other_words_as_tags(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "groups.json").write_text(json.dumps({"subgroups": {"34": "animal-mammal"}}))
    english = [
        {"hexcode": "1F43B-200D-2744-FE0F", "label": "polar bear", "subgroup": 34, "tags": ["arctic", "bear", "white"]},
        {"hexcode": "1F1E6", "label": "regional indicator A"},
    ]
    for language, labels in (("en", english), ("de", [english[0] | {"label": "Eisbär"}]), ("fr", english[:1])):
        (tmp_path / language).mkdir()
        (tmp_path / language / "data.json").write_text(json.dumps(labels))
    (thing,) = read_things(tmp_path)
    assert (thing.code, thing.name, thing.subgroup) == ("1f43b-200d-2744", "polar bear", "animal-mammal")
    assert thing.tags == ("arctic", "white")
    assert thing.foreign == {"de": "Eisbär"}


def test_a_damaged_file_of_the_cache_is_named(iconify_folder: Path) -> None:
    (iconify_folder / "chars.json").write_text("{")
    with pytest.raises(MaterialError, match=r"chars\.json cannot be read .*; remove its folder"):
        read_hand(iconify_folder, PACKAGE)


@pytest.mark.medium
def test_the_real_material(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("resvg_py", reason="resvg-py is not installed")
    monkeypatch.setenv("ALIGNGPT_CACHE", str(USERS_CACHE.parent))
    packages = (*iconify.TRAIN_SETS, iconify.UNSEEN_SET, iconify.NAMES)
    missing = [package.requirement for package in packages if not entry_of(package).is_dir()]
    if missing:
        pytest.skip(f"{', '.join(missing)} of npm not in the cache {USERS_CACHE}")
    material = npm_material()
    assert len(material.things) == 243, "docs/scenes.md gives the number"
    assert {thing.subgroup for thing in material.things} == set(CATEGORIES)
    known = {thing.name for thing in read_things(fetch(iconify.NAMES, ("en/data.json", "meta/groups.json")))}
    assert known >= LEFT_OUT, "a name that is left out is misspelt"
    assert material.unseen_hand is not None
    for hand in (*material.hands, material.unseen_hand):
        for thing in material.things[::10]:
            assert hand.draw(thing.code, 26).getbbox() is not None, (hand.name, thing.name)
