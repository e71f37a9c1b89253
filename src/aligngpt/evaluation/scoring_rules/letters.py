"""Multiple choice: reading an option's letter from an answer as ScienceQA, SEED-Bench and MMBench do."""

import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

SCIENCE_QA_LETTERS = "ABCDE"

# The dot is unescaped in the published program, so any character but a newline may follow the letter, and one must.
_THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")

_MMBENCH_PUNCTUATION = str.maketrans({mark: " " for mark in ".()[],:;!*#{}"})
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def science_qa_letter(text: str) -> str | None:
    """The letter by LLaVA's `eval_science_qa.py`; None if it cannot be read.

    The whole answer is the letter; or it begins like "B. "; or it has exactly one "The answer is X." (where the dot is
    any character). Whether the letter is one of the question's options is for the caller to check.
    """
    if len(text) == 1 and text in SCIENCE_QA_LETTERS:
        return text
    if len(text) >= 3 and text[0] in SCIENCE_QA_LETTERS and text[1:3] == ". ":
        return text[0]
    found = _THE_ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else None


def science_qa_correct(text: str, choices: int, answer: int) -> bool:
    """Whether an answer is right by LLaVA's rule; `answer` counts from 0, a letter beyond the choices is wrong."""
    letter = science_qa_letter(text)
    return letter is not None and letter in SCIENCE_QA_LETTERS[:choices] and SCIENCE_QA_LETTERS.index(letter) == answer


def science_qa_correct_lmms(text: str, answer: int) -> bool:
    """Whether an answer is right by lmms-eval: it is the letter in either case, or begins with it as in "B."."""
    right, text = SCIENCE_QA_LETTERS[answer], text.strip()
    return text.upper() == right or text.startswith(f"{right}.")


def seed_correct(text: str, letter: str) -> bool:
    """Whether a SEED-Bench answer is right by LLaVA's rule: it equals the letter, so "A." is wrong."""
    return text == letter


def seed_correct_lmms(text: str, letter: str) -> bool:
    """Whether a SEED-Bench answer is right by lmms-eval: its first character is the letter, in either case."""
    return text.strip()[:1].lower() == letter.lower()


def mmbench_letter(text: str, letters: Sequence[str]) -> str | None:
    """The option's letter by VLMEvalKit's rule (`can_infer_option` of `matching_util.py`); None if not readable.

    Exactly one of the letters stands alone among the words, first at one of the last four, after punctuation is
    replaced by spaces. "Z" stands for a refusal, or an answer that says Z.
    """
    if "Failed to obtain answer via API" in text:
        return None
    if any(refusal in text for refusal in _REFUSALS):
        return "Z"
    words = text.translate(_MMBENCH_PUNCTUATION).split()
    found = [letter for letter in letters if letter in words]
    if len(found) == 1:
        return found[0] if words.index(found[0]) > len(words) - 5 else None
    return "Z" if not found and "Z" in words else None


def mmbench_option(text: str, options: Mapping[str, str]) -> str | None:
    """The option meant by an answer by VLMEvalKit's matching without a judge; None if it cannot be read.

    Its letter (`mmbench_letter`), else the only option whose text the answer contains, in lower case, unless the answer
    is more than twice as long as all options together.

    Args:
        text: the answer.
        options: letter → text of the option.
    """
    if letter := mmbench_letter(text, list(options)):
        return letter
    if len(text) > 2 * sum(len(option) for option in options.values()):
        return None
    found = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return found[0] if len(found) == 1 else None


class CircularScore(NamedTuple):
    """MMBench's two accuracies in 0…1; people confuse them, so they stay together.

    Attributes:
        circular: share of questions all of whose rows, with the options shifted, are right.
        vanilla: share of questions whose first row is right.
        questions: number of questions.
    """

    circular: float
    vanilla: float
    questions: int


def circular_score(rows: Sequence[tuple[int, bool]]) -> CircularScore:
    """MMBench's accuracies from rows of (index, right); the rows of a question have the same index modulo 10⁶.

    Raises:
        ValueError: there are no rows.
    """
    groups: dict[Hashable, dict[int, bool]] = defaultdict(dict)
    for index, right in rows:
        groups[index % 1_000_000][index] = right
    if not groups:
        raise ValueError("CircularEval needs at least one row")
    vanilla = [marks[min(marks)] for marks in groups.values()]
    circular = [all(marks.values()) for marks in groups.values()]
    return CircularScore(sum(circular) / len(groups), sum(vanilla) / len(groups), len(groups))
