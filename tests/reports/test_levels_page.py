"""The levels page: it is complete and self-contained, and untrusted text stays text."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aligngpt.reports.levels_page import (
    CopiedGroup,
    Copies,
    LevelRow,
    LevelsPage,
    ScoreByBin,
    ScoreNumbers,
    ShownPair,
    build_levels_page,
)
from aligngpt.reports.thumbnails import Thumbnail, shrunk

HOSTILE = "</td><script>alert('x')</script><img src=x onerror=alert(1)>{{ 7*7 }} $x_ & \" ' \x00 \ud83d"


class Page(HTMLParser):
    """The page as a browser parses it: elements with their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def full_page(text: str = "plain") -> LevelsPage:
    here = ShownPair(f"id-1 {text}", 1, -0.25, f"worst {text}", shrunk(Image.new("RGB", (30, 20))), f"a/{text}.png")
    gone = ShownPair("id-2", 2, 0.5, "best", Thumbnail(problem="truncated"), "b/gone.png")
    return LevelsPage(
        title=f"Levels of {text}",
        numbers=ScoreNumbers(1200, 0.125, 0.25, {0.0: -0.5, 0.01: -0.4, 0.5: 0.1, 1.0: 0.75}),
        borders=[0.2],
        rank_error=0.0007,
        levels=[LevelRow(1150, False, 7.25, 320.0), LevelRow(50, True)],
        bin_counts=[1150, 50],
        bin_edges=[-0.5, 0.25, 1.0],
        examples=[here, gone],
        lowest=[here],
        same_picture=Copies(3, 9, 1200, largest=[CopiedGroup(5, here)]),
        same_caption=Copies(8, 16, 1200, 0.25, [CopiedGroup(2, gone)]),
        by_caption=ScoreByBin(["1–4", "5–8"], [1190, 10], [0.1, 0.3], [0.05, 0.0], 0.625),
        by_picture=ScoreByBin(["64–127"], [1200], [0.125], [0.25], None),
        facts={f"Model {text}": text},
        full={f"Model {text}": f"/long/{text}"},
        warnings=[f"{text} hardly differ"],
    )


def built(page: LevelsPage, folder: Path) -> str:
    build_levels_page(page, folder / "out" / "levels.html")
    return (folder / "out" / "levels.html").read_text("utf-8")


@pytest.fixture
def page(tmp_path: Path) -> str:
    return built(full_page(), tmp_path)


def test_everything_is_on_the_page(page: str) -> None:
    words = Page(page).words
    for expected in (
        "1,200 pairs in 2 levels",
        "below 0.200 1,150 95.8% 7.2 320 px",
        "from 0.200 50 4.2% – – thin",
        "each is off by at most 0.07% of the pairs",
        "Mean 0.125 Deviation 0.250 Lowest −0.500 1% −0.400 Median 0.100 Highest 0.750",
        "logarithm of the caption length: 0.62",
        "9 of 1,200 pairs (0.8%) have the image of another pair; 3 images occur more than once.",
        "About 16 of 1,200 pairs",
        "only one caption in 4, selected by its hash, was counted",
        "The 1 pair with the lowest scores",
        "Level 1 · score −0.250 id-1 plain",
    ):
        assert expected in words


def test_page_makes_no_request_and_runs_nothing(page: str) -> None:
    for tag, attributes in Page(page).elements:
        assert tag not in {"script", "iframe", "object", "embed", "link", "base", "form", "a", "foreignobject"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert str(value).startswith(("data:image/", "#"))
    assert not re.search(r"url\((?!#)|@import", page)
    assert "default-src 'none'" in page


def test_hostile_text_stays_text(tmp_path: Path, page: str) -> None:
    hostile = Page(built(full_page(HOSTILE), tmp_path))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in Page(page).elements]
    assert "<script>alert('x')</script>" in hostile.text
    assert "{{ 7*7 }}" in hostile.text and "\x00" not in hostile.text


def test_pictures_are_inlined_and_one_that_cannot_be_opened_says_why(page: str) -> None:
    images = [attributes for tag, attributes in Page(page).elements if tag == "img"]
    assert [image["alt"] for image in images] == ["Image plain.png"] * 3
    assert all(str(image["src"]).startswith("data:image/") for image in images)
    assert "truncated b/gone.png" in re.sub(r"(truncated)(b/)", r"\1 \2", Page(page).words)


def test_figures_tell_those_who_cannot_see_them(page: str) -> None:
    labels = [attributes.get("aria-label") or "" for _, attributes in Page(page).elements]
    assert "Histogram of 1,200 scores, cut into 2 levels." in labels
    assert "Mean score by caption length in tokens. 1–4: 0.100; 5–8: 0.300." in labels


def test_no_id_occurs_twice(page: str) -> None:
    ids = [attributes["id"] for _, attributes in Page(page).elements if "id" in attributes]
    assert len(set(ids)) == len(ids) > 0


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    bare = LevelsPage(
        title="table",
        numbers=ScoreNumbers(2, 0.5, 0.1, {0.0: 0.4, 1.0: 0.6}),
        borders=[0.5],
        rank_error=0.0,
        levels=[LevelRow(1, False), LevelRow(1, False)],
        bin_counts=[1, 1],
        bin_edges=[0.25, 0.5, 0.75],
    )
    words = Page(built(bare, tmp_path)).words
    for absent in ("Caption tokens", "Pairs of each level", "Copies", "The lowest", "something else", "thin", "sketch"):
        assert absent not in words


def test_neighbouring_borders_can_be_told_apart(tmp_path: Path) -> None:
    near = dataclasses.replace(full_page(), borders=[0.2, 0.20004], levels=[LevelRow(400, False)] * 3, rank_error=0.0)
    assert "0.20000 to 0.20004" in Page(built(near, tmp_path)).words


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"levels": [LevelRow(1, False)]}, "expected 2 levels for 1 borders, found 1"),
        ({"bin_edges": [0.0, 1.0]}, "expected 3 edges of 2 bins, found 2"),
        ({"lowest": [ShownPair("x", 3, 0.1)]}, "expected a level in 1…2, found 3"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        dataclasses.replace(full_page(), **changes)


def test_what_was_drawn_is_never_said_of_all(tmp_path: Path) -> None:
    none_found = Copies(0, 0, 4000, 0.25, groups_interval=(0, 15), pairs_interval=(0, 31))
    large = Copies(2, 900, 4000, 0.25, [CopiedGroup(700, full_page().lowest[0], 760)], (1, 9), (820, 980))
    page = dataclasses.replace(full_page(), same_picture=none_found, same_caption=large)
    words = Page(built(page, tmp_path)).words
    assert "No two of" not in words
    assert "only one in 4 was compared: up to 31 pairs may have the image of another." in words
    assert "About 900 of 4,000 pairs (22.5%, 95% interval 820 to 980) have the caption" in words
    assert "700 to 760 pairs" in words
    assert "bars: 95% interval of the mean" in words


def test_a_short_path_has_its_full_form_as_title(page: str) -> None:
    titles = [attributes["title"] for tag, attributes in Page(page).elements if tag == "dd" and "title" in attributes]
    assert titles == ["/long/plain"]


def test_warnings_and_the_numbering_of_levels_are_said_once(page: str, tmp_path: Path) -> None:
    words = Page(page).words
    assert words.count("Warning: plain hardly differ.") == 1
    assert words.count("there they are 0 to 1, as in the authors' files") == 1
    bare = dataclasses.replace(full_page(), warnings=[])
    assert "Warning" not in Page(built(bare, tmp_path)).words
