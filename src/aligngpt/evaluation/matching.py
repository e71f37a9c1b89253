"""Comparison of a generated answer with the accepted ones."""

import unicodedata
from collections.abc import Iterable

from aligngpt.data.records.sample import Sample

ARTICLES = {"a", "an", "the"}

MEANING = "%‰#@&"
"""Punctuation by category that changes what an answer says, as in 50% or C#."""

JUDGING = (
    "an answer is right if it equals an accepted answer; case, articles (a, an, the), punctuation at either end and "
    "extra spaces are ignored"
)
"""What `matches` does, in one line for people."""


def normalise(answer: str) -> str:
    """Normalise an answer for comparison: lower case, without articles, surrounding punctuation and extra spaces.

    Characters are composed (NFC). Punctuation is that of any script (category P of Unicode), but a sign in `MEANING`,
    the point of .5 and the minus of -5 stay. An answer of nothing else stays as it is.
    """
    text = " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", answer).casefold()).split())
    while True:
        bare = _bare(text)
        shorter = " ".join(word for word in bare.split(" ") if word not in ARTICLES) or bare
        if shorter == text:
            return text
        # An article may have stood before more punctuation: the "red".
        text = shorter


def _bare(text: str) -> str:
    """The text without the spaces and punctuation at its ends; unchanged if nothing would be left."""
    inner = [place for place, character in enumerate(text) if not _is_outer(character)]
    if not inner:
        return text
    start = inner[0]
    if text[start].isdigit():
        if text[:start].endswith(".") and not text[:start].endswith(".."):
            start -= 1
        if text[:start].endswith("-"):
            start -= 1
    return text[start : inner[-1] + 1]


def _is_outer(character: str) -> bool:
    return character == " " or (unicodedata.category(character)[0] == "P" and character not in MEANING)


def matches(answer: str, expected: str | Iterable[str]) -> bool:
    """Whether an answer equals the expected answer, or one of several, after normalisation."""
    accepted = [expected] if isinstance(expected, str) else expected
    return normalise(answer) in {normalise(one) for one in accepted}


def right_answers(sample: Sample) -> tuple[str, ...]:
    """The correct answers to a sample's last question: its last turn and the sample's other accepted answers."""
    return tuple(dict.fromkeys([sample.turns[-1].text, *sample.accepted]))
