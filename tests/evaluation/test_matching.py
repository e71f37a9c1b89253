"""Tests of answer matching: case, articles and surrounding punctuation do not matter, words do."""

import pytest

from aligngpt.evaluation.matching import matches, normalise


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("A circle.", "circle"),
        ("the Red  circle!", "red circle"),
        ("on a\ttable\n", "On the table"),
        (' "blue" ', "blue"),
        ("two;", "two"),
        ("'an apple'?", "apple"),
        ("ÉTÉ", "été"),
        ("a", "A"),
        ("the", "The."),
        ("猫。", "猫"),
        ("“cat”", "cat"),
        ("cat…", "cat"),
        ("¡Sí!", "sí"),
        ("**yes**", "yes"),
        ("(red)", "red"),
        ("e\u0301te\u0301", "été"),
        ("STRASSE", "straße"),
        ("ΟΔΟΣ", "οδος"),
        ('the "red"', "red"),
        ("(-5)", "-5."),
        ("'.5'", ".5"),
        ("- 5", "5"),
        ("...5", "5"),
    ],
)
def test_case_articles_and_outer_punctuation_do_not_matter(answer: str, expected: str) -> None:
    assert matches(answer, expected)
    assert matches(expected, answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("no", "yes"),
        ("red circle", "circle"),
        ("", "yes"),
        ("a", "the"),
        ("theatre", "atre"),
        ("another", "nother"),
        ("1.5", "15"),
        ("don't", "dont"),
        ("light blue", "lightblue"),
        (".5", "5"),
        ("-5", "5"),
        ("-.5", ".5"),
        ("", "?"),
        ("!", "?"),
        ("50%", "50"),
        ("C#", "C"),
    ],
)
def test_other_words_are_wrong(answer: str, expected: str) -> None:
    assert not matches(answer, expected)
    assert not matches(expected, answer)


def test_any_of_several_accepted_answers_is_right() -> None:
    accepted = ["Grey", "gray", "a silver"]
    assert all(matches(answer, accepted) for answer in ("grey", "Gray.", "silver"))
    assert not matches("black", accepted)
    assert not matches("grey", [])
    assert not matches("g", "grey"), "a text is one answer, not the answers of its letters"


def test_a_normal_form_stays_as_it_is() -> None:
    for answer in ("The Red  Circle.", "an", "", "  ", '"a" b', "what , then", 'the "red"', "a . the", "?!", "-.5."):
        assert normalise(normalise(answer)) == normalise(answer)
