"""GQA: questions about scenes; the answer must equal the gold answer."""

import json
from collections.abc import Sequence
from pathlib import Path

from aligngpt.evaluation.benchmarks.folder import EVAL_ZIP, DataError, DataFolder, by_unique
from aligngpt.evaluation.benchmarks.frame import Benchmark, Item, Score, scored_by
from aligngpt.evaluation.benchmarks.intervals import by_category, mean_score
from aligngpt.evaluation.scoring_rules.short_answers import gqa_correct, gqa_prediction

GOLD = "gqa/data/testdev_balanced_questions.json"


class Gqa(Benchmark):
    """GQA's balanced testdev split (Hudson and Manning, "GQA", CVPR 2019)."""

    name = "gqa"
    title = "GQA"
    split = "testdev, balanced"
    source = f"{EVAL_ZIP} `gqa`; questions with answers and pictures are GQA's own, in `gqa/data`"
    column = "GQA"
    published_questions = 12_578
    scorers = scored_by("GQA's eval.py on LLaVA's conversion: equal apart from dots at the end and case")

    def read(self, data: DataFolder) -> list[Item]:
        gold = data.json(GOLD)
        if not isinstance(gold, dict):
            raise DataError(f"{data.root / GOLD} is not a JSON object by question id; download it again")
        items = []
        rows = by_unique(data.rows("gqa/llava_gqa_testdev_balanced.jsonl"), "question_id")
        for name, row in rows.items():
            entry = gold.get(name)
            if not isinstance(entry, dict) or not isinstance(entry.get("answer"), str):
                raise DataError(
                    f"{row.where}: {GOLD} has no answer to question {name}; the files do not belong together"
                )
            theirs = self.question_of(entry.get("question", row["text"]))
            if theirs != self.question_of(row["text"]):
                raise DataError(
                    f"{row.where}: question {name} is {theirs!r} in {GOLD}; the files do not belong together"
                )
            picture = data.picture(row["image"], "gqa/data/images")
            structural = entry.get("types", {}).get("structural", "")
            items.append(Item(row["question_id"], row["text"], picture, entry["answer"], structural))
        if absent := len(gold) - len(items):
            raise DataError(f"{GOLD} has {absent:,} questions that llava_gqa_testdev_balanced.jsonl does not ask")
        return items

    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        values = [float(gqa_correct(text, item.truth)) for item, text in zip(items, texts, strict=True)]
        return mean_score(values, [item.group for item in items], by_category(values, items))

    def uploads(self, items: Sequence[Item], texts: Sequence[str], data: DataFolder) -> dict[str, str]:
        rows = [
            {"questionId": str(item.question_id), "prediction": gqa_prediction(text)}
            for item, text in zip(items, texts, strict=True)
        ]
        return {"testdev_balanced_predictions.json": json.dumps(rows)}


BENCHMARKS = (Gqa(),)
