"""POPE: does the picture show this object? Three ways to draw absent objects; published is the mean of three F1."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from aligngpt.evaluation.benchmarks.folder import EVAL_ZIP, DataError, DataFolder
from aligngpt.evaluation.benchmarks.frame import LMMS, Benchmark, Item, Score, scored_by
from aligngpt.evaluation.benchmarks.intervals import BOOTSTRAP, Weights, bootstrap_interval
from aligngpt.evaluation.scoring_rules.pope import count_answers, read_answer, read_answer_lmms

CATEGORIES = ("adversarial", "popular", "random")


class Label(NamedTuple):
    """What tells a labelled question from the others."""

    category: str
    image: str
    question: str


class Pope(Benchmark):
    """POPE as LLaVA asks it (Li et al., "Evaluating object hallucination in large vision-language models", 2023)."""

    name = "pope"
    title = "POPE"
    split = "COCO val2014, LLaVA's 8,910 questions"
    source = (
        f"{EVAL_ZIP} `pope`; the folder `coco` is that of POPE's repository at commit e3e3926, and the pictures are "
        "COCO val2014 in `pope/val2014`"
    )
    column: ClassVar[str | None] = "POPE"
    published_questions = 8_910
    scorers = scored_by(
        published="LLaVA's eval_pope.py per category; the figure is the mean of the three F1",
        lmms="lmms-eval 0.7.3: the bare word; F1 over all questions",
    )

    def read(self, data: DataFolder) -> list[Item]:
        labels = self.labels(data, "pope/coco/coco_pope_")
        items, used = [], set()
        for row in data.rows("pope/llava_pope_test.jsonl"):
            key = Label(row["category"], row["image"], self.question_of(row["text"]))
            if key not in labels:
                raise DataError(
                    f"{row.where} (question {row['question_id']}) has no label in pope/coco/coco_pope_{key.category}"
                    ".json; the two files are of different versions of POPE. LLaVA's questions need the files `coco` "
                    "of POPE's commit e3e3926"
                )
            used.add(key)
            picture = data.picture(row["image"], "pope/val2014")
            items.append(Item(row["question_id"], row["text"], picture, labels[key], key.category))
        if unused := len(labels) - len(used):
            data.notes.append(f"{unused:,} labels in pope/coco are of questions that were not asked")
        return items

    def labels(self, data: DataFolder, start: str) -> dict[Label, str]:
        """The labels, yes or no, in the files of the three categories, whose names begin with `start`.

        Raises:
            DataError: a label is something else, or contradicts another.
        """
        found: dict[Label, str] = {}
        for category in CATEGORIES:
            for row in data.rows(f"{start}{category}.json"):
                if row["label"] not in ("yes", "no"):
                    raise DataError(f"{row.where} has the label {row['label']!r}, expected yes or no")
                key = Label(category, row["image"], self.question_of(row["text"]))
                if found.setdefault(key, row["label"]) != row["label"]:
                    raise DataError(f"{row.where} contradicts an earlier label of the same question")
        return found

    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        read = read_answer_lmms if rules == LMMS else read_answer
        said, truth = [read(text) for text in texts], [item.truth for item in items]
        category = np.array([item.category for item in items])
        divisions = (
            [np.full(len(items), True)] if rules == LMMS else [category == one for one in dict.fromkeys(category)]
        )
        yes = np.array([one == "yes" for one in said])
        no = np.array([one == "no" for one in said])
        true = np.array([one == "yes" for one in truth])

        def figure(weights: Weights) -> float:
            found = []
            for inside in divisions:
                right = weights[inside & yes & true].sum()
                wrong = weights[inside & yes & ~true].sum() + weights[inside & no & true].sum()
                found.append(2 * right / (2 * right + wrong) if right else 0.0)
            return 100 * float(np.mean(found))

        parts: dict[str, float] = {}
        for name in dict.fromkeys(category):
            mine = [place for place, one in enumerate(category) if one == name]
            counts = count_answers([said[place] for place in mine], [truth[place] for place in mine])
            for measure in ("f1", "accuracy", "precision", "recall", "yes_ratio"):
                parts[f"{name} {measure.replace('_', ' ')}"] = 100 * getattr(counts, measure)
        absent = [one for one in CATEGORIES if one not in category]
        notes: tuple[str, ...] = (
            (f"the mean is over {len(set(category))} categories; {', '.join(absent)} not asked",) if absent else ()
        )
        if unread := sum(one is None for one in said):
            notes += (f"{unread:,} answers are neither yes nor no and count as wrong",)
        low, high = bootstrap_interval([item.group for item in items], figure)
        return Score(figure(np.ones(len(items))), low, high, BOOTSTRAP if low is not None else "", parts, notes)


BENCHMARKS = (Pope(),)
