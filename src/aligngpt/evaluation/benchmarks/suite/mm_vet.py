"""MM-Vet: free answers graded from 0 to 1 by a judge model, with figures by capability."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from aligngpt.evaluation.benchmarks.folder import EVAL_ZIP, DataError, DataFolder, Row, by_unique
from aligngpt.evaluation.benchmarks.frame import Item, Score, scored_by
from aligngpt.evaluation.benchmarks.intervals import OF_QUESTIONS, mean_score
from aligngpt.evaluation.judging.prompts import Messages, grade_messages, prompt_hash
from aligngpt.evaluation.judging.verdicts import (
    JudgedBenchmark,
    Question,
    Verdict,
    answer_hash,
    check_same_answer,
    facts_of,
    named,
)
from aligngpt.evaluation.scoring_rules.judged import LEAST_JUDGED, mm_vet_scores, read_grade

GRADES = "grades.json"
LABELS = ("mm-vet/mm-vet.json", "mm-vet/mm-vet/mm-vet.json", "mmvet/mm-vet.json")
PICTURES = ("mm-vet/images", "mm-vet/mm-vet/images", "mmvet/images")


class MmVet(JudgedBenchmark):
    """MM-Vet (Yu et al., "MM-Vet: evaluating large multimodal models for integrated capabilities", ICML 2024).

    Scored from `grades.json` in the benchmark's folder of results, as MM-Vet's `mm-vet_evaluator.py` writes it:
    question → `score`, a list with a grade for each run of the judge, and `model`, the judge of each. A judge is asked
    with that program's prompt at temperature 0, and once more with its shorter request if its reply cannot be read.
    """

    name = "mm-vet"
    title = "MM-Vet"
    split = "218 questions"
    source = f"{EVAL_ZIP} `mm-vet`; `mm-vet.json` and the pictures `images` are MM-Vet's own"
    new_tokens = 1024
    published_questions = 218
    picture_mode = "crop"
    scorers = scored_by("a judge's grades, averaged by MM-Vet's mm-vet_evaluator.py")
    verdicts_file = GRADES
    reference_file = "reference_grades.json"

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
                None,
                notes=(
                    f"needs a judge: add --judge-url and --judge-model, or put its grades into {path} (name: score, "
                    "model), then score again",
                ),
            )
        capabilities = {_name(item.question_id): item.truth for item in items}
        answers = {_name(item.question_id): text for item, text in zip(items, texts, strict=True)}
        content = self.read_verdicts(path)
        if content.keys() - capabilities.keys():
            raise DataError(
                f"{path} has questions that MM-Vet does not have, such as {min(content.keys() - capabilities)}"
            )
        judges: set[str] = set()
        for name, entry in content.items():
            check_same_answer(entry, answers[name], entry.where)
            judge = entry.get("model", "not named in the file")
            judges.update(map(str, judge if isinstance(judge, list) else [judge]))
        scores = _means(content)
        facts = facts_of(content.values())
        notes = [
            f"judge: {', '.join(sorted(judges))}; figures of another judge cannot be compared (published: gpt-4-0613)",
            f"{len(scores):,} of {len(items):,} answers have a grade",
        ]
        if ungraded := [name for name in capabilities if name not in scores]:
            notes.append(f"not graded, and in no figure: {named(ungraded)}")
        if len(scores) < LEAST_JUDGED * len(items):
            notes.append(f"no figure below {LEAST_JUDGED:.0%} graded answers")
            return Score(None, notes=tuple(notes), judge=facts)
        figures = mm_vet_scores(scores, capabilities)
        del figures["total"]  # `mean_score` is the same, with its interval.
        calibration, note = self._calibration(folder, facts, capabilities)
        pictures = {_name(item.question_id): item.group for item in items}
        found = mean_score(list(scores.values()), [pictures[name] for name in scores], figures | calibration)
        return replace(found, notes=(*notes, OF_QUESTIONS, *note), judge=facts)

    def _calibration(
        self, folder: Path, facts: dict[str, str], capabilities: Mapping[str, Sequence[str]]
    ) -> tuple[dict[str, float], list[str]]:
        """The judge's grade of the ground truth itself: a part, and what to make of it."""
        path = folder / self.reference_file
        if not facts or not path.is_file():
            return {}, []
        content = self.read_verdicts(path)
        scores = {name: score for name, score in _means(content).items() if name in capabilities}
        if facts_of(content.values()) != facts or len(scores) < LEAST_JUDGED * len(capabilities):
            return {}, [f"not calibrated: {len(scores):,} of {len(capabilities):,} truths graded in the same way"]
        total = mm_vet_scores(scores, capabilities)["total"]
        return {"ground truth": total}, [
            f"calibration: the judge gives the ground truth itself {total:.1f}% (100 from a judge that finds no fault "
            f"with it); {len(scores):,} of {len(capabilities):,} graded"
        ]

    @property
    def prompt_hash(self) -> str:
        return prompt_hash(*_chats("{question}", "{truth}", "{answer}"))

    def judge_questions(self, items: Sequence[Item], texts: Sequence[str] | None, data: DataFolder) -> list[Question]:
        labels = data.json(*LABELS)
        found = []
        for place, item in enumerate(items):
            name = _name(item.question_id)
            entry = labels[name]
            if not isinstance(truth := entry.get("answer"), str) or not truth.strip():
                raise DataError(f"mm-vet.json has no text as answer of {name}, the ground truth that a judge needs")
            answer = _as_answer(truth) if texts is None else texts[place]
            chats = _chats(entry.get("question", item.prompt), truth, answer)
            found.append(Question(name, "", answer, chats))
        return found

    def can_read(self, reply: str) -> bool:
        return read_grade(reply) is not None

    def read_verdicts(self, path: Path) -> dict[str, Row]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(content, dict) or not all(isinstance(one, dict) for one in content.values()):
            raise DataError(f"{path} is not a JSON object by question (v1_0, …) with an object of each")
        return {name: Row(entry, f"{path}, {name}") for name, entry in content.items()}

    def verdicts_text(self, verdicts: Sequence[Verdict], facts: Mapping[str, str]) -> str:
        content = {}
        for question, reply, problem in verdicts:
            grade = read_grade(reply)
            entry = {
                "model": [facts["judge"]],
                "content": [reply],
                # As the evaluator's own mark of a reply that could not be read.
                "score": [-1 if problem or grade is None else grade],
                "judging": dict(facts),
                "answer_sha256": answer_hash(question.answer),
            }
            content[question.name] = entry | ({"problem": problem} if problem else {})
        return json.dumps(content, ensure_ascii=False, indent=1)

    def uploads(self, items: Sequence[Item], texts: Sequence[str], data: DataFolder) -> dict[str, str]:
        answers = {_name(item.question_id): text for item, text in zip(items, texts, strict=True)}
        return {"mm_vet_answers.json": json.dumps(answers, ensure_ascii=False, indent=1)}


def _name(question_id: str | int) -> str:
    """MM-Vet's name of a question; LLaVA's file has its number only."""
    return str(question_id) if str(question_id).startswith("v1_") else f"v1_{question_id}"


def _chats(question: str, truth: str, answer: str) -> tuple[Messages, ...]:
    return (grade_messages(question, truth, answer), grade_messages(question, truth, answer, again=True))


def _as_answer(truth: str) -> str:
    """A ground truth as an answer: all of its elements, which is right by <AND> and by <OR>."""
    return ", ".join(part.strip() for part in re.split("<AND>|<OR>", truth))


def _means(content: Mapping[str, Row]) -> dict[str, float]:
    """The mean of the readable grades of each question; the evaluator writes −1 where it could not read a reply."""
    found = {}
    for name, entry in content.items():
        grades = entry.get("score")
        if not isinstance(grades, list) or not all(isinstance(one, int | float) for one in grades):
            raise DataError(f"{entry.where} has no list of numbers `score`")
        if wrong := [one for one in grades if one > 1]:
            raise DataError(f"{entry.where} has the grade {wrong[0]}, expected 0…1")
        if read := [float(one) for one in grades if one >= 0]:
            found[name] = sum(read) / len(read)
    return found


BENCHMARKS = (MmVet(),)
