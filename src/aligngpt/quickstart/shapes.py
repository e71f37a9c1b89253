"""The content of easy-VQA images, deduced from the questions about them, and right, vague and wrong captions."""

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")

RIGHT_CAPTIONS = (
    "a {colour} {shape}",
    "the image contains a {colour} {shape}",
    "there is a {colour} {shape} in the image",
    "a picture of a {colour} {shape}",
    "the {shape} is {colour}",
)
VAGUE_CAPTIONS = (
    "an image",
    "a shape",
    "a {shape}",
    "there is a {shape} in the image",
    "something {colour}",
    "the image contains a {colour} shape",
)

Quality = Literal["right", "vague", "wrong"]
"""Of a caption: "right" states colour and shape, "vague" states less, "wrong" states another colour or shape."""


@dataclass(frozen=True)
class Question:
    """One question of the package: its text, the answer, and the number of its image."""

    text: str
    answer: str
    image: int


@dataclass(frozen=True)
class Content:
    """Colour and shape of an image, deduced from the answers; None if unknown."""

    colour: str | None = None
    shape: str | None = None

    @property
    def complete(self) -> bool:
        return self.colour is not None and self.shape is not None


def question_type(text: str) -> str:
    """The type of a question: `colour`, `shape`, `presence-colour[-negated]` or `presence-shape[-negated]`.

    "what color is the shape?" is of type `colour`, "is there a teal shape?" of type `presence-colour`, and
    "is no circle present?" of type `presence-shape-negated`.
    """
    words = _words(text)
    if words[0] == "what":
        return "colour" if "color" in words else "shape"
    kind = "presence-colour" if _named(words, COLOURS) else "presence-shape"
    return f"{kind}-negated" if _negated(words) else kind


def picture_contents(questions: Iterable[Question]) -> dict[int, Content]:
    """The content of each image, as far as it can be deduced from the questions about it.

    Besides the answers to "what ..." questions and affirmed "is there ..." questions, this uses the assumptions of a
    question ("what color is the circle?") and elimination, if every other colour or shape is denied.

    Returns:
        Contents by image number, for all images with at least one question.
    """
    colours: defaultdict[int, set[str]] = defaultdict(lambda: set(COLOURS))
    shapes: defaultdict[int, set[str]] = defaultdict(lambda: set(SHAPES))
    for question in questions:
        words = _words(question.text)
        affirmed = question.answer not in ("yes", "no") or (question.answer == "yes") != _negated(words)
        for possible, values in ((colours[question.image], COLOURS), (shapes[question.image], SHAPES)):
            named = _named([*words, question.answer], values)
            if named and affirmed:
                possible &= named
            else:
                possible -= named
    return {image: Content(_only(colours[image]), _only(shapes[image])) for image in colours}


def wrong_content(content: Content, rng: random.Random) -> Content:
    """Replace the colour or the shape, with equal probability, by a wrong one. `content` must be complete."""
    if rng.random() < 0.5:
        return Content(rng.choice([colour for colour in COLOURS if colour != content.colour]), content.shape)
    return Content(content.colour, rng.choice([shape for shape in SHAPES if shape != content.shape]))


def write_caption(content: Content, quality: Quality, rng: random.Random) -> str:
    """A random caption of the given quality; the content must be complete unless the quality is vague."""
    if quality == "wrong":
        content = wrong_content(content, rng)
    known = {name: value for name, value in (("colour", content.colour), ("shape", content.shape)) if value}
    templates = VAGUE_CAPTIONS if quality == "vague" else RIGHT_CAPTIONS
    possible = [template for template in templates if set(re.findall(r"\{(\w+)\}", template)) <= known.keys()]
    return rng.choice(possible).format(**known)


def assign_qualities(
    contents: dict[int, Content], rng: random.Random, vague_share: float, wrong_share: float
) -> dict[int, Quality]:
    """Assign a caption quality to images, by image number in increasing order.

    Incomplete contents can only get vague captions and fill that share first; those that exceed it are left out.
    Shares refer to all captions and are exact up to rounding.
    """
    complete = [image for image in sorted(contents) if contents[image].complete]
    incomplete = [image for image in sorted(contents) if not contents[image].complete]
    rng.shuffle(complete)
    rng.shuffle(incomplete)
    if vague_share < 1:
        incomplete = incomplete[: int(len(complete) * vague_share / (1 - vague_share))]
    total = len(complete) + len(incomplete)
    vague = round(vague_share * total) - len(incomplete)
    wrong = min(round(wrong_share * total), len(complete) - vague)
    qualities: dict[int, Quality] = dict.fromkeys(incomplete, "vague")
    for place, image in enumerate(complete):
        qualities[image] = "vague" if place < vague else "wrong" if place < vague + wrong else "right"
    return dict(sorted(qualities.items()))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _named(words: Iterable[str], values: tuple[str, ...]) -> set[str]:
    return set(words) & set(values)


def _negated(words: Sequence[str]) -> bool:
    return "not" in words or "no" in words


def _only(values: set[str]) -> str | None:
    return next(iter(values)) if len(values) == 1 else None
