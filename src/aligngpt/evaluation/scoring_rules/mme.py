"""MME: reading yes, no or neither from an answer, and the scores, by its `calculation.py` and by lmms-eval."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

Reading = Literal["yes", "no", "other"]

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


class Asked(NamedTuple):
    """One question: its category, its picture, the true answer and what was read from the given one."""

    category: str
    picture: Hashable
    truth: Reading
    said: Reading


class CategoryScore(NamedTuple):
    """A category's share of right answers and of pictures with both answers right, in 0…1."""

    accuracy: float
    both_right: float

    @property
    def points(self) -> float:
        """The sum of the two in percent, 0…200."""
        return 100 * self.accuracy + 100 * self.both_right


def read_answer(text: str) -> Reading:
    """The rule of `calculation.py`: the answer itself, else `yes` or `no` within its first four characters."""
    lower = text.lower()
    return _read_start(lower)


def read_answer_lmms(text: str) -> Reading:
    """lmms-eval's rule: dots and surrounding spaces removed, `y` and `n` accepted, then as `read_answer`."""
    lower = text.lower().strip().replace(".", "")
    if len(lower) == 1:
        return "yes" if lower == "y" else "no" if lower == "n" else "other"
    return _read_start(lower)


def score_categories(asked: Sequence[Asked]) -> dict[str, CategoryScore]:
    """The scores of each category, in order of appearance.

    Pictures are told apart by `picture`, while `calculation.py` takes adjacent lines as one; the two agree on the
    published files.
    """
    by_category: dict[str, dict[Hashable, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for one in asked:
        by_category[one.category][one.picture].append(one.truth == one.said)
    scores = {}
    for category, pictures in by_category.items():
        right = [mark for marks in pictures.values() for mark in marks]
        both = [len(marks) == 2 and all(marks) for marks in pictures.values()]
        scores[category] = CategoryScore(sum(right) / len(right), sum(both) / len(both))
    return scores


def perception(scores: dict[str, CategoryScore]) -> float:
    """Sum of the points of the ten perception categories, 0…2000; absent ones give nothing."""
    return sum(scores[name].points for name in PERCEPTION if name in scores)


def cognition(scores: dict[str, CategoryScore]) -> float:
    """Sum of the points of the four cognition categories, 0…800; absent ones give nothing."""
    return sum(scores[name].points for name in COGNITION if name in scores)


def _read_start(lower: str) -> Reading:
    start = lower[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"
