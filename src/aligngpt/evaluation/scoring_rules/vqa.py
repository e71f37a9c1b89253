"""VQA answers: three published normalisations, and the soft accuracy over ten human answers."""

import re
from collections.abc import Sequence

from aligngpt.evaluation.scoring_rules.contractions import CONTRACTIONS

DIGITS = ("none zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, words in enumerate(DIGITS) for word in words.split()}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
"""As published. The lookahead `(?!<=` was meant as a lookbehind and always succeeds, so only the next digit counts."""

PERIODS_REMOVED = int(re.UNICODE)
"""The published programs pass `re.UNICODE` where `sub` takes the number of replacements, so they make at most 32."""

COMMA_LLAVA = re.compile(r"(?<=\d)(,)+(?=\d)")
COMMA_OFFICIAL = re.compile(r"(\d)(,)(\d)")


def normalise_llava(answer: str) -> str:
    """The normalisation of LLaVA's evaluation code (`EvalAIAnswerProcessor` of `m4c_evaluator.py`, from MMF).

    Used for TextVQA and for the answers in uploads of VQAv2 and VizWiz.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _digits_and_articles(_punctuation(_one_line(text), COMMA_LLAVA))


def normalise_official(answer: str) -> str:
    """The normalisation of the official `vqaEval.py`, applied only where the human answers differ."""
    return _digits_and_articles(_punctuation(_one_line(answer), COMMA_OFFICIAL))


def soft_accuracy(matching: Sequence[bool]) -> float:
    """The mean over all ways to leave one human answer out of min(1, matching others / 3), in 0…1.

    Antol et al., "VQA: Visual Question Answering", ICCV 2015.

    Args:
        matching: for each human answer, whether the prediction equals it.

    Raises:
        ValueError: there is no human answer.
    """
    if not matching:
        raise ValueError("soft accuracy needs at least one human answer")
    count = sum(matching)
    return sum(min(1.0, (count - one) / 3) for one in matching) / len(matching)


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Soft accuracy of one TextVQA answer by LLaVA's rules, in 0…1.

    Raises:
        ValueError: there are not ten answers.
    """
    if len(answers) != 10:
        raise ValueError(f"TextVQA has 10 human answers a question, found {len(answers)}")
    given = normalise_llava(prediction)
    return soft_accuracy([normalise_llava(one) == given for one in answers])


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Soft accuracy of one VQAv2 or VizWiz answer by the official rule, in 0…1.

    Prediction and answers are compared as they are if all human answers are equal, else normalised.
    """
    stripped, given = [_one_line(one) for one in answers], _one_line(prediction)
    if len(set(stripped)) > 1:
        stripped, given = [normalise_official(one) for one in stripped], normalise_official(given)
    return soft_accuracy([one == given for one in stripped])


def vqa_accuracy_lmms(prediction: str, answers: Sequence[str]) -> float:
    """Soft accuracy of one VQAv2 answer by lmms-eval's rule, in 0…1: always normalised."""
    given = normalise_official(prediction)
    return soft_accuracy([normalise_official(one) == given for one in answers])


def vizwiz_accuracy_lmms(prediction: str, answers: Sequence[str]) -> float:
    """Soft accuracy of one VizWiz answer by lmms-eval's rule, in 0…1: always normalised, and as LLaVA does."""
    given = normalise_llava(prediction)
    return soft_accuracy([normalise_llava(one) == given for one in answers])


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str, comma: re.Pattern[str]) -> str:
    """Remove each punctuation mark that is beside a space anywhere in the text; replace the others by spaces."""
    remove_all = comma.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or remove_all else " ")
    return PERIOD.sub("", result, count=PERIODS_REMOVED)


def _digits_and_articles(text: str) -> str:
    numbered = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered if word not in ARTICLES)
