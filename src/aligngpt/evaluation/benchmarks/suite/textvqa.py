"""TextVQA: questions about text in pictures, asked with the tokens of an OCR system in the prompt."""

from collections.abc import Sequence
from pathlib import Path

from aligngpt.evaluation.benchmarks.folder import EVAL_ZIP, DataError, DataFolder, Row
from aligngpt.evaluation.benchmarks.frame import Benchmark, Item, Key, Score, scored_by
from aligngpt.evaluation.benchmarks.intervals import mean_score
from aligngpt.evaluation.scoring_rules.vqa import textvqa_accuracy

OCR = "\nReference OCR token:"


class TextVqa(Benchmark):
    """TextVQA with OCR tokens, as LLaVA asks it (Singh et al., "Towards VQA models that can read", CVPR 2019).

    The ids in LLaVA's files are those of the pictures, so they repeat.
    """

    name = "textvqa"
    title = "TextVQA"
    split = "validation (v0.5.1)"
    source = f"{EVAL_ZIP} `textvqa`; labels and pictures are TextVQA's own, `TextVQA_0.5.1_val.json` and `train_images`"
    column = "TextVQA"
    published_questions = 5_000
    hint = "OCR tokens in the prompt"
    scorers = scored_by("LLaVA's m4c_evaluator.py: soft accuracy over 10 answers, normalised as for EvalAI")

    def question_of(self, prompt: str) -> str:
        return super().question_of(prompt.split(OCR, 1)[0])

    def read(self, data: DataFolder) -> list[Item]:
        answers: dict[Key, Row] = {}
        content = data.json("textvqa/TextVQA_0.5.1_val.json")
        records = content.get("data") if isinstance(content, dict) else None
        if not isinstance(records, list):
            raise DataError(f"{data.root}/textvqa/TextVQA_0.5.1_val.json has no list `data`; download it again")
        for number, fields in enumerate(records, 1):
            row = Row(fields, f"TextVQA_0.5.1_val.json, record {number}")
            if len(row["answers"]) != 10:
                raise DataError(f"{row.where} has {len(row['answers'])} answers, expected 10")
            answers[Key(row["image_id"], self.question_of(row["question"]))] = row
        items, without_ocr = [], 0
        for row in data.rows("textvqa/llava_textvqa_val_v051_ocr.jsonl"):
            key = Key(row["question_id"], self.question_of(row["text"]))
            if key not in answers:
                raise DataError(
                    f"{row.where}: TextVQA_0.5.1_val.json has no question {key.question!r} about the picture "
                    f"{key.question_id}; the two files do not belong together"
                )
            without_ocr += OCR not in row["text"]
            picture = data.picture(row["image"], "textvqa/train_images")
            items.append(Item(row["question_id"], row["text"], picture, answers[key]["answers"]))
        if without_ocr:
            data.notes.append(
                f"{without_ocr:,} prompts have no OCR tokens; without them figures are about 12 points lower"
            )
        return items

    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        values = [textvqa_accuracy(text, item.truth) for item, text in zip(items, texts, strict=True)]
        return mean_score(values, [item.group for item in items])


BENCHMARKS = (TextVqa(),)
