"""The text-only baseline: accuracy without looking at the image."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from aligngpt.data.records.sample import Sample
from aligngpt.evaluation.matching import matches, normalise, right_answers


class AnswerPrior:
    """Answers each question with its most frequent answer in the training data, regardless of the image.

    For a question not seen in training, falls back to the most frequent answer to questions that start with the same
    three, two or one words, and finally to the most frequent answer overall.
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
        """The most frequent answer, ties broken alphabetically; empty if nothing was fitted."""
        for key in _keys(question):
            if counts := self._answers.get(key):
                return min(counts, key=lambda answer: (-counts[answer], answer))
        return ""

    def right_records(self, samples: Sequence[Sample]) -> list[int]:
        """The record numbers of the samples that it answers correctly."""
        return [
            sample.record for sample in samples if matches(self.predict(sample.turns[-2].text), right_answers(sample))
        ]


def _keys(question: str) -> list[str]:
    words = normalise(question).split()
    # Deduplicate: for a one-word question, the first one, two and three words are the same.
    return list(dict.fromkeys(["= " + " ".join(words), *(" ".join(words[:count]) for count in (3, 2, 1, 0))]))
