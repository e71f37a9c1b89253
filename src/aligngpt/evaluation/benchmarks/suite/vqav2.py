"""VQAv2: the test split, whose answers only the server knows, and the validation split, scored here."""

import json
from collections.abc import Sequence
from pathlib import Path

from aligngpt.evaluation.benchmarks.folder import EVAL_ZIP, DataError, DataFolder, Row, by_unique
from aligngpt.evaluation.benchmarks.frame import LMMS, SHORT, Benchmark, Item, Score, scored_by
from aligngpt.evaluation.benchmarks.intervals import by_category, mean_score
from aligngpt.evaluation.scoring_rules.vqa import normalise_llava, vqa_accuracy, vqa_accuracy_lmms

ALL_QUESTIONS = "vqav2/llava_vqav2_mscoco_test2015.jsonl"


class VqaV2(Benchmark):
    """VQAv2's test-dev questions as LLaVA asks them; writes the file for the evaluation server."""

    name = "vqav2"
    title = "VQAv2"
    split = "test-dev2015 (scored by the server only)"
    source = f"{EVAL_ZIP} `vqav2`; the pictures are COCO test2015, in `vqav2/test2015`"
    scorers = scored_by("the evaluation server (EvalAI 830); answers normalised by LLaVA's EvalAIAnswerProcessor")
    column = "VQAv2"
    published_questions = 107_394

    def read(self, data: DataFolder) -> list[Item]:
        rows = by_unique(data.rows("vqav2/llava_vqav2_mscoco_test-dev2015.jsonl"), "question_id")
        # Not read before all questions are answered; found missing before any is asked.
        data.find(ALL_QUESTIONS)
        return [
            Item(row["question_id"], row["text"], data.picture(row["image"], "vqav2/test2015")) for row in rows.values()
        ]

    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        return Score(None, notes=("upload the file to the server, phase test-dev; vqav2-val is scored here",))

    def uploads(self, items: Sequence[Item], texts: Sequence[str], data: DataFolder) -> dict[str, str]:
        """All questions of test2015 in their order, with an empty answer where not asked, as the server requires."""
        order = by_unique(data.rows(ALL_QUESTIONS), "question_id")
        given = {str(item.question_id): normalise_llava(text) for item, text in zip(items, texts, strict=True)}
        if unknown := given.keys() - order.keys():
            raise DataError(
                f"{ALL_QUESTIONS} lacks {len(unknown):,} of the asked questions, such as "
                f"{min(unknown)}; the server needs a file with all of them"
            )
        rows = [{"question_id": row["question_id"], "answer": given.get(name, "")} for name, row in order.items()]
        return {"vqav2_upload.json": json.dumps(rows)}


class VqaV2Val(Benchmark):
    """VQAv2's validation split, from its official files; not the split of the published figures."""

    name = "vqav2-val"
    title = "VQAv2 val"
    split = "val2014"
    source = (
        "VQAv2's page (visualqa.org): `v2_OpenEnded_mscoco_val2014_questions.json`, "
        "`v2_mscoco_val2014_annotations.json` and COCO val2014, into the folder `vqav2` of the data folder"
    )
    scorers = scored_by("the official vqaEval.py", lmms="lmms-eval 0.7.3: answers always normalised")

    def read(self, data: DataFolder) -> list[Item]:
        questions = _listed(data, "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", "questions")
        labels = by_unique(_listed(data, "vqav2/v2_mscoco_val2014_annotations.json", "annotations"), "question_id")
        items = []
        for name, row in by_unique(questions, "question_id").items():
            if name not in labels or labels[name]["image_id"] != row["image_id"]:
                raise DataError(f"{row.where}: the annotations have no question {name} about this picture")
            picture = data.picture(f"COCO_val2014_{int(row['image_id']):012d}.jpg", "vqav2/val2014", "pope/val2014")
            answers = [one["answer"] for one in labels[name]["answers"]]
            kind = labels[name].get("answer_type", "")
            items.append(Item(row["question_id"], f"{row['question']}\n{SHORT}", picture, answers, kind))
        return items

    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        accuracy = vqa_accuracy_lmms if rules == LMMS else vqa_accuracy
        values = [accuracy(text, item.truth) for item, text in zip(items, texts, strict=True)]
        return mean_score(values, [item.group for item in items], by_category(values, items))


def _listed(data: DataFolder, name: str, field: str) -> list[Row]:
    content = data.json(name)
    found = content.get(field) if isinstance(content, dict) else None
    if not isinstance(found, list) or not found:
        raise DataError(f"{data.root / name} has no list {field!r}; it is not VQAv2's own file")
    return [Row(one, f"{name}, {field} {number}") for number, one in enumerate(found, 1)]


BENCHMARKS = (VqaV2(), VqaV2Val())
