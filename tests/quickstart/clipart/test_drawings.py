from collections.abc import Callable
from pathlib import Path

from aligngpt.quickstart.clipart.drawings import Drawing, read_drawings


def test_the_metadata_of_the_work_are_read_not_those_of_publisher_or_page(
    library: Path, add: Callable[..., None]
) -> None:
    add("animals/birds/swan_01", "A  swan &\n co", ["bird", "", "white"], creator="Bo Drawer")
    drawings, left_out = read_drawings(library)
    licence = "http://web.resource.org/cc/PublicDomain"
    assert drawings == [Drawing("animals/birds/swan_01", "A swan & co", ("bird", "white"), ("Bo Drawer",), licence)]
    assert not left_out and drawings[0].folder == "animals/birds" and drawings[0].stem == "swan_01"


def test_what_cannot_be_used_is_counted_by_its_reason(library: Path, add: Callable[..., None]) -> None:
    add("food/pear", "pear", licence="http://creativecommons.org/licenses/publicdomain/")
    add("food/gpl", "plum", licence="http://creativecommons.org/licenses/GPL/2.0/")
    add("food/none", "plum", licence="")
    add("food/untitled", " ")
    add("food/no-picture", "fig")
    (library / "png/food/no-picture.png").unlink()
    add("shapes/stars/star_1", "star")
    add("computer/icons/theme/save", "save")
    add("special/gradients/red", "red")
    (library / "svg/food/broken.svg").write_text("<svg><metadata>")
    drawings, left_out = read_drawings(library)
    assert [drawing.path for drawing in drawings] == ["food/pear"]
    assert left_out == {
        "not stated to be in the public domain": 2,
        "without a title": 1,
        "without a PNG": 1,
        "generated stars": 1,
        "application icons": 1,
        "gradients": 1,
        "unreadable SVG": 1,
    }


def test_entities_that_expand_without_end_make_a_file_unreadable(library: Path) -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    text = f'<!DOCTYPE svg [<!ENTITY e0 "word">{entities}]><svg><title>&e11;</title></svg>'
    (library / "svg/bomb.svg").write_text(text)
    assert read_drawings(library) == ([], {"unreadable SVG": 1})
