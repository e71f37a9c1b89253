import pytest

from aligngpt.quickstart.clipart.drawings import Drawing
from aligngpt.quickstart.clipart.wording import (
    agrees,
    content_words,
    description_of,
    keywords_of,
    name_of,
    without_plural,
    words_of,
)


def drawing(
    stem: str, title: str = "", keywords: tuple[str, ...] = (), creator: str = "Architetto Francesco"
) -> Drawing:
    return Drawing(f"folder/{stem}", title, keywords, (creator,), "")


def test_words_have_no_case_accents_digits_or_camels() -> None:
    assert words_of("FlowerAndPot_02 – Élan, B&W") == ["flower", "and", "pot", "elan", "b", "w"]


@pytest.mark.parametrize(
    ("plural", "singular"),
    [("cherries", "cherry"), ("boxes", "box"), ("cats", "cat"), ("glass", "glass"), ("bus", "bus"), ("pies", "pie")],
)
def test_plurals_lose_their_ending(plural: str, singular: str) -> None:
    assert without_plural(plural) == singular


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("cigno_architetto_frances_01", "cigno"),
        ("cigno_architetto_", "cigno"),
        ("cigno_francesco_archi", "cigno"),
        ("red_car_01", "red car"),
        # The name of an author can be what is drawn.
        ("architetto_01", "architetto"),
        ("coffee_ganson", "coffee"),
        ("aiga_first_aid_", "first aid"),
        ("sm_014", "sm"),
    ],
)
def test_the_name_is_the_file_name_without_author_and_numbers(stem: str, name: str) -> None:
    assert name_of(drawing(stem)) == name


def test_keywords_are_cleaned_of_authors_and_remains() -> None:
    raw = ("Bird", "hash", "hash(0x8a09558)", "0xa0b7df4", "11", "unsorted", "bird", "architetto francesco", "sea_bird")
    assert keywords_of(drawing("swan", keywords=raw)) == ["bird", "sea bird"]


def test_a_description_has_the_name_and_what_keywords_add() -> None:
    assert description_of(drawing("white_birds_01", keywords=("bird", "water", "lake"))) == "white birds, lake, water"
    assert description_of(drawing("01", keywords=("hash",))) == ""


@pytest.mark.parametrize(
    ("title", "stem", "keywords", "expected"),
    [
        ("Two Cherries", "cherry_03", (), True),
        ("Cavallo", "c12", ("horse", "cavallo"), True),
        ("Pan Cakes", "pancakes", ("food",), True),
        ("floppydisk", "x1", ("floppy",), True),
        ("Various Cliparts", "swan", ("bird",), False),
        # Words about the library, and the author's, say nothing about the picture.
        ("AIGA_Symbol_Signs", "aiga_bar", ("symbol", "mapsym"), False),
        ("Clipart by Architetto Francesco - antenna", "wall_architetto", ("architetto",), False),
        ("Cup", "cupboard", (), False),
    ],
)
def test_a_title_agrees_if_it_shares_a_content_word(
    title: str, stem: str, keywords: tuple[str, ...], expected: bool
) -> None:
    assert agrees(drawing(stem, title, keywords)) is expected


def test_content_words_leave_out_short_and_empty_ones() -> None:
    assert content_words(["The map of an Ox", "icons"]) == {"map"}
