"""MM-Vet: free answers graded from 0 to 1 by a judge model, with figures by capability."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligngpt.evaluation.benchmarks.folder import EVAL_ZIP, DataError, DataFolder, by_unique
from aligngpt.evaluation.benchmarks.frame import Benchmark, Item, Score, scored_by
from aligngpt.evaluation.scoring_rules.judged import LEAST_JUDGED, mm_vet_scores

GRADES = "grades.json"
LABELS = ("mm-vet/mm-vet.json", "mm-vet/mm-vet/mm-vet.json", "mmvet/mm-vet.json")
PICTURES = ("mm-vet/images", "mm-vet/mm-vet/images", "mmvet/images")


class MmVet(Benchmark):
    """MM-Vet (Yu et al., "MM-Vet: evaluating large multimodal models for integrated capabilities", ICML 2024).

    Scored from `grades.json` in the benchmark's folder of results, as MM-Vet's `mm-vet_evaluator.py` writes it:
    question → `score`, a list with a grade for each run of the judge, and `model`, the judge of each.
    """

    name = "mm-vet"
    title = "MM-Vet"
    split = "218 questions"
    source = f"{EVAL_ZIP} `mm-vet`; `mm-vet.json` and the pictures `images` are MM-Vet's own"
    new_tokens = 1024
    published_questions = 218
    picture_mode = "crop"
    scorers = scored_by("a judge's grades, averaged by MM-Vet's mm-vet_evaluator.py")

    def read(self, data: DataFolder) -> list[Item]:
        labels = data.json(*LABELS)
        items = []
        for row in by_unique(data.rows("mm-vet/llava-mm-vet.jsonl"), "question_id").values():
            entry = labels.get(_name(row["question_id"])) if isinstance(labels, dict) else None
            if not isinstance(entry, dict) or not isinstance(entry.get("capability"), list):
                raise DataError(f"{row.where}: mm-vet.json has no capabilities of {_name(row['question_id'])}")
            if self.question_of(entry.get("question", row["text"])) != self.question_of(row["text"]):
                raise DataError(
                    f"{row.where} is {entry['question']!r} in mm-vet.json; the files do not belong together"
                )
            items.append(
                Item(row["question_id"], row["text"], data.picture(row["image"], *PICTURES), tuple(entry["capability"]))
            )
        return items

    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        path = folder / GRADES
        if not path.is_file():
            return Score(
                None, notes=(f"needs a judge: put its grades into {path} (name: score, model), then score again",)
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON: {error}") from error
        capabilities = {_name(item.question_id): item.truth for item in items}
        if not isinstance(content, dict) or content.keys() - capabilities.keys():
            raise DataError(
                f"{path} is not a JSON object by question (v1_0, …), or has questions that MM-Vet does not have"
            )
        scores: dict[str, float] = {}
        judges: set[str] = set()
        for name, entry in content.items():
            grades = _grades(entry, name, path)
            judge = entry.get("model", "not named in the file")
            judges.update(map(str, judge if isinstance(judge, list) else [judge]))
            if grades:
                scores[name] = sum(grades) / len(grades)
        notes = (
            f"judge: {', '.join(sorted(judges))}; figures of another judge cannot be compared (published: gpt-4-0613)",
            f"{len(scores):,} of {len(items):,} answers have a grade",
        )
        if len(scores) < LEAST_JUDGED * len(items):
            return Score(None, notes=(*notes, f"no figure below {LEAST_JUDGED:.0%} graded answers"))
        figures = mm_vet_scores(scores, capabilities)
        return Score(figures.pop("total"), parts=figures, notes=notes)

    def uploads(self, items: Sequence[Item], texts: Sequence[str], data: DataFolder) -> dict[str, str]:
        answers = {_name(item.question_id): text for item, text in zip(items, texts, strict=True)}
        return {"mm_vet_answers.json": json.dumps(answers, ensure_ascii=False, indent=1)}


def _name(question_id: str | int) -> str:
    """MM-Vet's name of a question; LLaVA's file has its number only."""
    return str(question_id) if str(question_id).startswith("v1_") else f"v1_{question_id}"


def _grades(entry: Any, name: str, path: Path) -> list[float]:
    """The readable grades of a question; the evaluator writes −1 where it could not read the judge's reply."""
    grades = entry.get("score") if isinstance(entry, dict) else None
    if not isinstance(grades, list) or not all(isinstance(one, int | float) for one in grades):
        raise DataError(f"{path}: {name} has no list of numbers `score`")
    if wrong := [one for one in grades if one > 1]:
        raise DataError(f"{path}: {name} has the grade {wrong[0]}, expected 0…1")
    return [float(one) for one in grades if one >= 0]


BENCHMARKS = (MmVet(),)
