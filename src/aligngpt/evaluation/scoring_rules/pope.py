"""POPE: reading yes or no from an answer, and its measures, by LLaVA's rules and by lmms-eval's."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

YesNo = Literal["yes", "no"]


class PopeCounts(NamedTuple):
    """Answers by what was said and what is true; `unread` were neither yes nor no."""

    said_yes_true: int
    said_yes_false: int
    said_no_true: int
    said_no_false: int
    unread: int = 0

    @property
    def total(self) -> int:
        """Number of answers."""
        return sum(self)

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0…1; an unread answer is wrong. 0 without answers."""
        return _share(self.said_yes_true + self.said_no_true, self.total)

    @property
    def precision(self) -> float:
        """Share of the yes answers that are right, 0…1; 0 without a yes."""
        return _share(self.said_yes_true, self.said_yes_true + self.said_yes_false)

    @property
    def recall(self) -> float:
        """Share of the read answers whose truth is yes that say yes, 0…1; 0 without any."""
        return _share(self.said_yes_true, self.said_yes_true + self.said_no_false)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0…1; 0 without a right yes."""
        return _share(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        """Share of answers that say yes, 0…1."""
        return _share(self.said_yes_true + self.said_yes_false, self.total)


def read_answer(text: str) -> YesNo:
    """Yes or no by LLaVA's `eval_pope.py`: no if the first sentence has the word `No`, `not` or `no`, else yes.

    Commas are removed first and words end at spaces, so "Yes,no" and "NO" are read as yes.
    """
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def read_answer_lmms(text: str) -> YesNo | None:
    """Yes or no by lmms-eval: the whole answer must be the word; None for anything else, such as "Yes."."""
    word = text.strip().lower()
    return "yes" if word == "yes" else "no" if word == "no" else None


def count_answers(said: Sequence[YesNo | None], truth: Sequence[YesNo]) -> PopeCounts:
    """Count what was said against the truth.

    Raises:
        ValueError: the two have different lengths.
    """
    pairs = list(zip(said, truth, strict=True))
    return PopeCounts(
        said_yes_true=pairs.count(("yes", "yes")),
        said_yes_false=pairs.count(("yes", "no")),
        said_no_true=pairs.count(("no", "no")),
        said_no_false=pairs.count(("no", "yes")),
        unread=sum(one is None for one, _ in pairs),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
