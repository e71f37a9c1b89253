"""When an answer counts as right."""

import re
from collections.abc import Iterable

from aligngpt.data.records.sample import Sample

ARTICLES = {"a", "an", "the"}


def normalise(answer: str) -> str:
    """An answer as it is compared: lower case, without articles, outer punctuation and extra spaces."""
    words = re.sub(r"\s+", " ", answer.strip().lower()).strip(" .,;:!?\"'").split(" ")
    return " ".join(word for word in words if word not in ARTICLES) or " ".join(words)


def matches(answer: str, expected: str | Iterable[str]) -> bool:
    """Whether an answer is, once normalised, the expected one (or one of them)."""
    accepted = [expected] if isinstance(expected, str) else expected
    return normalise(answer) in {normalise(one) for one in accepted}


def right_answers(sample: Sample) -> tuple[str, ...]:
    """The answers to a sample's last question that count as right: its last turn, and the others that it accepts."""
    return tuple(dict.fromkeys([sample.turns[-1].text, *sample.accepted]))
