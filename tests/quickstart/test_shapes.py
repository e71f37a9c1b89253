import random
from collections import Counter

import pytest

from aligngpt.quickstart.shapes import (
    COLOURS,
    SHAPES,
    Content,
    Quality,
    Question,
    assign_qualities,
    picture_contents,
    question_type,
    write_caption,
)


def content_from(*answers: tuple[str, str]) -> Content:
    return picture_contents([Question(text, answer, 7) for text, answer in answers])[7]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("what color is the shape?", "colour"),
        ("what is the color of the triangle?", "colour"),
        ("what is the teal shape?", "shape"),
        ("what shape does the image contain?", "shape"),
        ("is there a red shape in the image?", "presence-colour"),
        ("does the image contain a circle?", "presence-shape"),
        ("is there not a red shape?", "presence-colour-negated"),
        ("is no gray shape present?", "presence-colour-negated"),
        ("does the image not contain a circle?", "presence-shape-negated"),
        ("is no triangle present?", "presence-shape-negated"),
    ],
)
def test_question_types(text: str, kind: str) -> None:
    assert question_type(text) == kind


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([("what color is the shape?", "teal")], Content("teal", None)),
        ([("what shape is present?", "circle")], Content(None, "circle")),
        ([("what color is the circle?", "teal")], Content("teal", "circle")),
        ([("what is the red shape?", "triangle")], Content("red", "triangle")),
        ([("is there a red shape?", "yes")], Content("red", None)),
        ([("is there not a red shape?", "no")], Content("red", None)),
        ([("is no circle present?", "no")], Content(None, "circle")),
        ([("is there a red shape?", "no")], Content()),
        ([("is no circle present?", "yes")], Content()),
        ([("is there a circle?", "no"), ("is there not a triangle?", "yes")], Content(None, "rectangle")),
    ],
)
def test_contents_follow_from_answers(answers: list[tuple[str, str]], expected: Content) -> None:
    assert content_from(*answers) == expected


def test_a_colour_follows_when_all_others_are_denied() -> None:
    denied = [(f"is a {colour} shape present?", "no") for colour in COLOURS if colour != "gray"]
    assert content_from(*denied) == Content("gray", None)
    assert content_from(*denied[1:]) == Content()


def test_a_right_caption_says_colour_and_shape() -> None:
    rng = random.Random(0)
    captions = {write_caption(Content("teal", "circle"), "right", rng) for _ in range(200)}
    assert len(captions) == 5
    assert all("teal" in caption and "circle" in caption for caption in captions)


def test_a_wrong_caption_changes_exactly_one_of_colour_and_shape() -> None:
    rng, changed = random.Random(0), Counter[str]()
    for _ in range(400):
        words = write_caption(Content("teal", "circle"), "wrong", rng).split()
        (colour,), (shape,) = set(words) & set(COLOURS), set(words) & set(SHAPES)
        assert (colour == "teal") != (shape == "circle")
        changed["shape" if colour == "teal" else "colour"] += 1
    assert min(changed.values()) > 150


@pytest.mark.parametrize(
    "content", [Content(), Content("teal", None), Content(None, "circle"), Content("teal", "circle")]
)
def test_a_vague_caption_is_true_and_says_less_than_both(content: Content) -> None:
    rng = random.Random(0)
    for _ in range(100):
        words = set(write_caption(content, "vague", rng).split())
        said = words & {*COLOURS, *SHAPES}
        assert said <= {content.colour, content.shape}
        assert len(said) <= 1


@pytest.mark.parametrize(
    ("vague", "wrong", "expected"),
    [
        (0.15, 0.15, {"right": 70, "vague": 15, "wrong": 15}),
        (0.0, 0.0, {"right": 90}),
        (0.0, 0.5, {"right": 45, "wrong": 45}),
        (0.5, 0.5, {"vague": 50, "wrong": 50}),
        (1.0, 0.0, {"vague": 100}),
        (0.05, 0.0, {"right": 89, "vague": 5}),
    ],
)
def test_shares_hold_over_all_captions(vague: float, wrong: float, expected: dict[Quality, int]) -> None:
    contents = {n: Content("red", "circle" if n % 10 else None) for n in range(100)}
    qualities = assign_qualities(contents, random.Random(0), vague, wrong)
    assert Counter(qualities.values()) == Counter(expected)
    assert all(qualities.get(n, "vague") == "vague" for n in range(0, 100, 10))
    assert list(qualities) == sorted(qualities)
