"""The text-only baseline: what the question alone gives away."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from aligngpt.data.records.sample import Sample
from aligngpt.evaluation.matching import matches, normalise, right_answers


class AnswerPrior:
    """Answers each question with what was most often the answer to it in training, whatever the picture.

    A question that training did not have is answered by its first words, three, two or one, else by the most frequent
    answer of all.
    """

    def __init__(self) -> None:
        self._answers: dict[str, Counter[str]] = defaultdict(Counter)

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> "AnswerPrior":
        """Count the answers of training samples, by question and by its first words."""
        prior = cls()
        for sample in samples:
            for key in _keys(sample.turns[-2].text):
                prior._answers[key][normalise(sample.turns[-1].text)] += 1
        return prior

    def predict(self, question: str) -> str:
        """The most frequent answer, of equals the first in the alphabet; empty when nothing was fitted."""
        for key in _keys(question):
            if counts := self._answers.get(key):
                return min(counts, key=lambda answer: (-counts[answer], answer))
        return ""

    def count_correct(self, samples: Sequence[Sample]) -> int:
        """How many of the samples it answers right."""
        return sum(matches(self.predict(sample.turns[-2].text), right_answers(sample)) for sample in samples)


def _keys(question: str) -> list[str]:
    words = normalise(question).split()
    # Each once: a question of one word begins with the same one, two or three words.
    return list(dict.fromkeys(["= " + " ".join(words), *(" ".join(words[:count]) for count in (3, 2, 1, 0))]))
