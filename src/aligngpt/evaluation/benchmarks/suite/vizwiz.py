"""VizWiz: questions that blind people asked about their photographs; many cannot be answered."""

import json
from collections.abc import Sequence
from pathlib import Path

from aligngpt.evaluation.benchmarks.folder import EVAL_ZIP, DataError, DataFolder, by_unique
from aligngpt.evaluation.benchmarks.frame import LMMS, SHORT, UNANSWERABLE, Benchmark, Item, Score, scored_by
from aligngpt.evaluation.benchmarks.intervals import by_category, mean_score
from aligngpt.evaluation.scoring_rules.vqa import normalise_llava, vizwiz_accuracy_lmms, vqa_accuracy


class VizWiz(Benchmark):
    """VizWiz' test split as LLaVA asks it; writes the file for the evaluation server."""

    name = "vizwiz"
    title = "VizWiz"
    split = "test (scored by the server only)"
    source = f"{EVAL_ZIP} `vizwiz`; the pictures are VizWiz' own, in `vizwiz/test`"
    column = "VizWiz"
    published_questions = 8_000
    scorers = scored_by("the evaluation server; answers normalised by LLaVA's EvalAIAnswerProcessor")

    def read(self, data: DataFolder) -> list[Item]:
        return [
            Item(row["question_id"], row["text"], data.picture(row["image"], "vizwiz/test"))
            for row in by_unique(data.rows("vizwiz/llava_test.jsonl"), "question_id").values()
        ]

    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        return Score(None, notes=("only a server knows the answers, and its challenge 2185 is closed; use vizwiz-val",))

    def uploads(self, items: Sequence[Item], texts: Sequence[str], data: DataFolder) -> dict[str, str]:
        names = [item.group for item in items]
        if len(set(names)) < len(names):
            raise DataError("vizwiz/llava_test.jsonl asks twice about a picture; the server takes one answer a picture")
        rows = [{"image": name, "answer": normalise_llava(text)} for name, text in zip(names, texts, strict=True)]
        return {"vizwiz_upload.json": json.dumps(rows)}


class VizWizVal(Benchmark):
    """VizWiz' validation split, asked as LLaVA asks the test split; not the split of the published figures."""

    name = "vizwiz-val"
    title = "VizWiz val"
    split = "validation"
    source = "VizWiz' page (vizwiz.org): `val.json` and the pictures `val`, into the folder `vizwiz` of the data folder"
    scorers = scored_by(
        "the official VQA rule over 10 answers", lmms="lmms-eval 0.7.3: answers normalised by EvalAIAnswerProcessor"
    )

    def read(self, data: DataFolder) -> list[Item]:
        return [
            Item(
                row["image"],
                f"{row['question']}\n{UNANSWERABLE}\n{SHORT}",
                data.picture(row["image"], "vizwiz/val"),
                [one["answer"] for one in row["answers"]],
                row.get("answer_type", ""),
            )
            for row in by_unique(data.records("vizwiz/val.json"), "image").values()
        ]

    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        accuracy = vizwiz_accuracy_lmms if rules == LMMS else vqa_accuracy
        values = [accuracy(text, item.truth) for item, text in zip(items, texts, strict=True)]
        return mean_score(values, [item.group for item in items], by_category(values, items))


BENCHMARKS = (VizWiz(), VizWizVal())
