"""MME: fourteen subtasks of yes/no questions, two a picture; published is the sum over the ten of perception."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aligngpt.evaluation.benchmarks.folder import EVAL_ZIP, DataError, DataFolder
from aligngpt.evaluation.benchmarks.frame import LMMS, Benchmark, Item, Score, scored_by
from aligngpt.evaluation.benchmarks.intervals import BOOTSTRAP, Weights, bootstrap_interval
from aligngpt.evaluation.scoring_rules import mme

YES_OR_NO = "Please answer yes or no."
RELEASE = "MME/MME_Benchmark_release_version"


class Mme(Benchmark):
    """MME as LLaVA asks it (Fu et al., "MME: a comprehensive evaluation benchmark for multimodal LLMs", 2023)."""

    name = "mme"
    title = "MME"
    split = "all 14 subtasks"
    source = f"{EVAL_ZIP} `MME`; pictures and labels are MME's own release, in `{RELEASE}`"
    unit = "points"
    column = "MME"
    published_questions = 2_374
    scorers = scored_by(
        published="MME's calculation.py; the figure is the sum of accuracy and accuracy+ over perception",
        lmms="lmms-eval 0.7.3: dots removed, y and n accepted",
    )

    def question_of(self, prompt: str) -> str:
        return super().question_of(prompt.replace(YES_OR_NO, " "))

    def read(self, data: DataFolder) -> list[Item]:
        items = []
        for row in data.rows("MME/llava_mme.jsonl"):
            category, stem = str(row["question_id"]).split("/")[0], Path(str(row["question_id"])).stem
            answer = self._labels(data, category, stem).get(question := self.question_of(row["text"]))
            if answer is None:
                raise DataError(
                    f"{row.where}: {RELEASE}/{category} has no label for the question {question!r} about {stem}; "
                    "the questions and the release do not belong together"
                )
            picture = data.picture(row["image"], RELEASE)
            if picture.path is not None and not picture.path.is_file():
                picture = data.picture(Path(row["image"]).name, f"{RELEASE}/{category}/images", f"{RELEASE}/{category}")
            items.append(Item(row["question_id"], row["text"], picture, answer, category))
        self._check(items)
        return items

    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        read = mme.read_answer_lmms if rules == LMMS else mme.read_answer
        asked = [
            mme.Asked(item.category, item.question_id, item.truth, read(text))
            for item, text in zip(items, texts, strict=True)
        ]
        scores = mme.score_categories(asked)
        parts = {"cognition": mme.cognition(scores)} | {name: score.points for name, score in scores.items()}
        absent = [name for name in mme.PERCEPTION if name not in scores]
        notes: tuple[str, ...] = (f"not asked and counted as 0: {', '.join(absent)}",) if absent else ()
        if unread := sum(one.said == "other" for one in asked):
            notes += (f"{unread:,} answers are neither yes nor no and count as wrong",)
        low, high = _interval(asked)
        return Score(mme.perception(scores), low, high, BOOTSTRAP if low is not None else "", parts, notes)

    def _labels(self, data: DataFolder, category: str, stem: str) -> dict[str, str]:
        """The labels of one picture by question; some subtasks keep them in a folder of their own."""
        path = data.find(f"{RELEASE}/{category}/questions_answers_YN/{stem}.txt", f"{RELEASE}/{category}/{stem}.txt")
        found = {}
        for number, line in enumerate(data.text(path).splitlines(), 1):
            if not line.strip():
                continue
            question, tab, answer = line.strip().rpartition("\t")
            if not tab or answer.strip().lower() not in ("yes", "no"):
                raise DataError(f"{path}, line {number}: expected a question, a tab and Yes or No")
            found[self.question_of(question)] = answer.strip().lower()
        return found

    @staticmethod
    def _check(items: Sequence[Item]) -> None:
        count: dict[str | int, int] = {}
        for item in items:
            count[item.question_id] = count.get(item.question_id, 0) + 1
        odd = [name for name, questions in count.items() if questions != 2]
        if odd:
            raise DataError(
                f"MME/llava_mme.jsonl has {count[odd[0]]} questions about {odd[0]}, expected 2 a picture "
                f"({len(odd):,} such pictures)"
            )


def _interval(asked: Sequence[mme.Asked]) -> tuple[float, float] | tuple[None, None]:
    right = np.array([one.truth == one.said for one in asked], dtype=np.float64)
    number = {pair: place for place, pair in enumerate(dict.fromkeys((one.category, one.picture) for one in asked))}
    picture = np.array([number[one.category, one.picture] for one in asked])
    both = np.bincount(picture, weights=right)[picture] == 2
    inside = [
        np.array([one.category == name for one in asked])
        for name in dict.fromkeys(one.category for one in asked)
        if name in mme.PERCEPTION
    ]

    def figure(weights: Weights) -> float:
        # A picture has two questions, so shares of questions are shares of pictures.
        return sum(100 * float(np.average(right[one] + both[one], weights=weights[one])) for one in inside)

    strata = [one.category for one in asked]
    return bootstrap_interval([one.picture for one in asked], figure, strata)


BENCHMARKS = (Mme(),)
