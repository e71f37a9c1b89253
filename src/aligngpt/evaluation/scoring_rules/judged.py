"""Benchmarks scored by a judge model: reading its replies, and the figures computed from them."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MOST_POINTS = 10
"""Highest score of LLaVA-Bench's prompt; a higher one is on another scale."""
LEAST_JUDGED = 0.95
"""Share of answers that must have a readable judgement before a figure is given."""


# The prompt ends in a row of a table, which some judges close.
_GRADE = re.compile(r"\|?\s*([0-9]*\.?[0-9]+|[0-9]+\.)\s*\|?\s*")


class ReviewScores(NamedTuple):
    """The judge's scores from 1 to 10 of the reference answer and of the model's."""

    reference: float
    model: float


class Relative(NamedTuple):
    """LLaVA-Bench's figure for one category.

    Attributes:
        ratio: 100 · Σ model / Σ reference, in percent.
        reference: mean score of the reference answers, times 10.
        model: mean score of the model's answers, times 10.
    """

    ratio: float
    reference: float
    model: float


def read_review(reply: str) -> ReviewScores | None:
    """The two scores in the first line of a reply; None if it is not two numbers up to 10.

    LLaVA's program reads the same line and turns an unreadable reply into two scores of −1, which then count; it takes
    numbers of any size.
    """
    words = reply.split("\n", 1)[0].replace(",", " ").split(" ")
    if len(words) != 2:
        return None
    try:
        scores = ReviewScores(float(words[0]), float(words[1]))
    except ValueError:
        return None
    return scores if all(0 <= score <= MOST_POINTS for score in scores) else None


def read_grade(reply: str) -> float | None:
    """The grade in the first line of a reply; None if that line is not a number in 0…1 and nothing else.

    MM-Vet's program reads the first word of a reply cut after three tokens, and gives 0 after five unreadable replies.
    Of a whole reply the first word says too little: "1. The prediction is wrong", "1 out of 10".
    """
    line = reply.strip().partition("\n")[0]
    found = _GRADE.fullmatch(line)
    return grade if found and 0 <= (grade := float(found[1])) <= 1 else None


def relative_score(reviews: Sequence[ReviewScores]) -> Relative:
    """LLaVA-Bench's figure, as `summarize_gpt_review.py` computes it.

    Raises:
        ValueError: there are no reviews, or the reference answers have no points.
    """
    reference, model = (math.fsum(scores) for scores in zip(*reviews, strict=True)) if reviews else (0.0, 0.0)
    if reference <= 0:
        raise ValueError("the relative score needs reviews in which the reference answers have points")
    return Relative(100 * model / reference, 10 * reference / len(reviews), 10 * model / len(reviews))


def mm_vet_scores(scores: Mapping[str, float], capabilities: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """MM-Vet's figures in percent: the mean of each capability's questions, and `total` over all of them.

    As its `mm-vet_evaluator.py`; a question counts for each of its capabilities.

    Args:
        scores: question → grade in 0…1.
        capabilities: question → the capabilities it needs.

    Raises:
        ValueError: there are no scores, or a grade is not in 0…1.
        KeyError: the capabilities of a question are unknown.
    """
    if not scores:
        raise ValueError("MM-Vet's figures need at least one grade")
    for question, score in scores.items():
        if not 0 <= score <= 1:
            raise ValueError(f"the grade of {question} is {score}, expected 0…1")
    by_capability: dict[str, list[float]] = defaultdict(list)
    for question, score in scores.items():
        for capability in dict.fromkeys(capabilities[question]):
            by_capability[capability].append(score)
    figures = {name: 100 * sum(marks) / len(marks) for name, marks in sorted(by_capability.items())}
    return figures | {"total": 100 * sum(scores.values()) / len(scores)}
