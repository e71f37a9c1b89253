"""SEED-Bench, its questions about images: multiple choice in nine kinds."""

import json
from collections.abc import Sequence
from pathlib import Path

from aligngpt.evaluation.benchmarks.folder import EVAL_ZIP, DataError, DataFolder, Row, by_unique
from aligngpt.evaluation.benchmarks.frame import LMMS, Benchmark, Item, Score, scored_by
from aligngpt.evaluation.benchmarks.intervals import by_category, mean_score
from aligngpt.evaluation.scoring_rules.letters import seed_correct, seed_correct_lmms


class Seed(Benchmark):
    """The image part of SEED-Bench (Li et al., "SEED-Bench", 2023); questions about videos are left out."""

    name = "seed"
    title = "SEED-Bench"
    split = "image questions"
    source = f"{EVAL_ZIP} `seed_bench`; `SEED-Bench.json` and the pictures `SEED-Bench-image` are SEED-Bench's own"
    column = "SEED"
    published_questions = 14_232
    scorers = scored_by(
        "LLaVA's convert_seed_for_submission.py: the answer equals the letter",
        lmms="lmms-eval 0.7.3: the answer begins with the letter, in either case",
    )

    def read(self, data: DataFolder) -> list[Item]:
        content = data.json("seed_bench/SEED-Bench.json")
        if not isinstance(content, dict) or not isinstance(content.get("questions"), list):
            raise DataError(f"{data.root}/seed_bench/SEED-Bench.json has no list `questions`; download it again")
        gold = by_unique(
            (Row(one, f"SEED-Bench.json, question {place}") for place, one in enumerate(content["questions"], 1)),
            "question_id",
        )
        kinds = {number: name for name, number in content.get("question_type", {}).items()}
        items = []
        rows = by_unique(data.rows("seed_bench/llava-seed-bench.jsonl"), "question_id")
        for name, row in rows.items():
            if name not in gold:
                raise DataError(
                    f"{row.where}: SEED-Bench.json has no question {name}; the files do not belong together"
                )
            if (entry := gold[name])["data_type"] != "image":
                continue
            if self.question_of(entry["question"]) not in self.question_of(row["text"]):
                raise DataError(f"{row.where}: question {name} is {entry['question']!r} in SEED-Bench.json")
            picture = data.picture(row["image"], "seed_bench")
            kind = kinds.get(entry.get("question_type_id"), "")
            items.append(Item(row["question_id"], row["text"], picture, entry["answer"], kind))
        asked = {str(item.question_id) for item in items}
        absent = [name for name, entry in gold.items() if entry["data_type"] == "image" and name not in asked]
        if absent:
            raise DataError(
                f"llava-seed-bench.jsonl does not ask {len(absent):,} image questions of SEED-Bench.json, such as "
                f"{absent[0]}"
            )
        return items

    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        right = seed_correct_lmms if rules == LMMS else seed_correct
        values = [float(right(text, item.truth)) for item, text in zip(items, texts, strict=True)]
        unread = sum(text not in ("A", "B", "C", "D") for text in texts) if rules != LMMS else 0
        notes = (f"{unread:,} answers are not a bare letter and count as wrong",) if unread else ()
        return mean_score(values, [item.group for item in items], by_category(values, items), notes)

    def uploads(self, items: Sequence[Item], texts: Sequence[str], data: DataFolder) -> dict[str, str]:
        lines = [
            json.dumps({"question_id": item.question_id, "prediction": text})
            for item, text in zip(items, texts, strict=True)
        ]
        return {"seed_bench_predictions.jsonl": "\n".join(lines) + "\n"}


BENCHMARKS = (Seed(),)
