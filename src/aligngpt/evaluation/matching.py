"""Comparison of a generated answer with the accepted ones."""

import re
from collections.abc import Iterable

from aligngpt.data.records.sample import Sample

ARTICLES = {"a", "an", "the"}

JUDGING = (
    "an answer is right if it equals an accepted answer; case, articles (a, an, the), punctuation at either end and "
    "extra spaces are ignored"
)
"""What `matches` does, in one line for people."""


def normalise(answer: str) -> str:
    """Normalise an answer for comparison: lower case, without articles, surrounding punctuation and extra spaces."""
    words = re.sub(r"\s+", " ", answer.strip().lower()).strip(" .,;:!?\"'").split(" ")
    return " ".join(word for word in words if word not in ARTICLES) or " ".join(words)


def matches(answer: str, expected: str | Iterable[str]) -> bool:
    """Whether an answer equals the expected answer, or one of several, after normalisation."""
    accepted = [expected] if isinstance(expected, str) else expected
    return normalise(answer) in {normalise(one) for one in accepted}


def right_answers(sample: Sample) -> tuple[str, ...]:
    """The correct answers to a sample's last question: its last turn and the sample's other accepted answers."""
    return tuple(dict.fromkeys([sample.turns[-1].text, *sample.accepted]))
