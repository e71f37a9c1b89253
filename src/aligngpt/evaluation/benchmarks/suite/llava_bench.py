"""LLaVA-Bench (in the wild): free answers, compared with reference answers by a judge model."""

import json
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np

from aligngpt.evaluation.benchmarks.answers import join_answers, read_answers
from aligngpt.evaluation.benchmarks.folder import DataError, DataFolder, Row, by_unique, read_json_lines
from aligngpt.evaluation.benchmarks.frame import Item, Score, scored_by
from aligngpt.evaluation.benchmarks.intervals import BOOTSTRAP, OF_QUESTIONS, Weights, bootstrap_interval
from aligngpt.evaluation.judging.prompts import prompt_hash, review_messages
from aligngpt.evaluation.judging.verdicts import (
    JudgedBenchmark,
    Question,
    Verdict,
    answer_hash,
    check_same_answer,
    facts_of,
    named,
)
from aligngpt.evaluation.scoring_rules.judged import LEAST_JUDGED, ReviewScores, read_review, relative_score

FOLDER = "llava-bench-in-the-wild"
REVIEWS = "reviews.jsonl"
CATEGORIES = ("conv", "detail", "complex")
"""The kinds of questions that LLaVA's `rule.json` has a rule for."""


class LlavaBench(JudgedBenchmark):
    """LLaVA-Bench in the wild (Liu et al., "Visual instruction tuning", NeurIPS 2023).

    Scored from `reviews.jsonl` in the benchmark's folder of results: the judge's replies, with `question_id` and
    `content` as LLaVA's `eval_gpt_review_bench.py` writes them, the reference answer's score first. A judge
    is asked with that program's prompt, except that the description of the picture is sent as it is: the program puts
    every character of it on a line of its own.
    """

    name = "llava-bench"
    title = "LLaVA-Bench (in the wild)"
    split = "60 questions about 24 pictures"
    source = f"LLaVA-Bench's page (liuhaotian/llava-bench-in-the-wild on the hub), as the folder `{FOLDER}`"
    new_tokens = 1024
    published_questions = 60
    picture_mode = "crop"
    scorers = scored_by("a judge's replies: 100 · Σ scores of the model / Σ scores of the reference answers")
    verdicts_file = REVIEWS
    reference_file = "reference_reviews.jsonl"

    def read(self, data: DataFolder) -> list[Item]:
        return [
            Item(row["question_id"], row["text"], data.picture(row["image"], f"{FOLDER}/images"), None, row["category"])
            for row in by_unique(data.rows(f"{FOLDER}/questions.jsonl"), "question_id").values()
        ]

    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        path = folder / REVIEWS
        if not path.is_file():
            return Score(
                None,
                notes=(
                    f"needs a judge: add --judge-url and --judge-model, or put its replies into {path} "
                    "(question_id, content), then score again",
                ),
            )
        answers = {str(item.question_id): text for item, text in zip(items, texts, strict=True)}
        category = {str(item.question_id): item.category for item in items}
        rows = self.read_verdicts(path)
        if unknown := rows.keys() - answers.keys():
            raise DataError(f"{path} reviews question {min(unknown)}, which LLaVA-Bench does not have")
        reviews: dict[str, ReviewScores] = {}
        for name, row in rows.items():
            check_same_answer(row, answers[name], row.where)
            if (scores := read_review(row["content"])) is not None:
                reviews[name] = scores
        judges = sorted({str(row.get("judge", "not named in the file")) for row in rows.values()})
        facts = facts_of(rows.values())
        notes = [
            f"judge: {', '.join(judges)}; figures of another judge cannot be compared (published: gpt-4-0314)",
            f"{len(reviews):,} of {len(items):,} answers have a readable review",
        ]
        if unread := [name for name in answers if name not in reviews]:
            notes.append(f"not judged, and in no figure: {named(unread)}")
        if len(reviews) < LEAST_JUDGED * len(items):
            notes.append(f"no figure below {LEAST_JUDGED:.0%} readable reviews")
            return Score(None, notes=tuple(notes), judge=facts)
        by_category: dict[str, list[ReviewScores]] = defaultdict(list)
        for name, scores in reviews.items():
            by_category[category[name]].append(scores)
        if pointless := [name for name, group in by_category.items() if not any(one.reference for one in group)]:
            notes.append(f"no figure: the judge gives the reference answers of {pointless[0]} no points")
            return Score(None, notes=tuple(notes), judge=facts)
        parts = {name: relative_score(group).ratio for name, group in sorted(by_category.items())}
        overall = relative_score(list(reviews.values()))
        parts |= {"reference answers": overall.reference, "model's answers": overall.model}
        calibration, note = self._calibration(folder, facts, len(items))
        pictures = {str(item.question_id): item.group for item in items}
        low, high = _interval(list(reviews.values()), [pictures[name] for name in reviews])
        return Score(
            overall.ratio,
            low,
            high,
            BOOTSTRAP if low is not None else "",
            parts=parts | calibration,
            notes=(*notes, *([OF_QUESTIONS] if low is not None else []), *note),
            judge=facts,
        )

    def _calibration(self, folder: Path, facts: dict[str, str], items: int) -> tuple[dict[str, float], list[str]]:
        """The judge's scores of reference answers against themselves: a part, and what to make of it."""
        path = folder / self.reference_file
        if not facts or not path.is_file():
            return {}, []
        rows = self.read_verdicts(path)
        reviews = [scores for row in rows.values() if (scores := read_review(row["content"])) is not None]
        if (
            facts_of(rows.values()) != facts
            or len(reviews) < LEAST_JUDGED * items
            or not any(one.reference for one in reviews)
        ):
            return {}, [f"not calibrated: {len(reviews):,} of {items:,} reference answers judged in the same way"]
        found = relative_score(reviews)
        return {"reference answers against themselves": found.ratio}, [
            f"calibration: against themselves, the judge gives the reference answers {found.ratio:.1f}% (100 without a "
            f"preference for a place) and {found.model:.1f} of 100 points; {len(reviews):,} of {items:,} read"
        ]

    @property
    def prompt_hash(self) -> str:
        return prompt_hash(review_messages("{context}", "{question}", "{reference}", "{answer}"))

    def judge_questions(self, items: Sequence[Item], texts: Sequence[str] | None, data: DataFolder) -> list[Question]:
        contexts = by_unique(data.rows(f"{FOLDER}/context.jsonl"), "image")
        references = self._references(items, data)
        found = []
        for item, reference, answer in zip(items, references, references if texts is None else texts, strict=True):
            if item.category not in CATEGORIES:
                raise DataError(
                    f"question {item.question_id} of LLaVA-Bench has the category {item.category!r}; LLaVA's judge "
                    f"has a rule for {', '.join(CATEGORIES)}"
                )
            picture = item.picture.name if item.picture is not None else ""
            if (row := contexts.get(picture)) is None:
                raise DataError(f"{FOLDER}/context.jsonl of the data folder does not describe the picture {picture}")
            chat = review_messages(_context(row), item.prompt, reference, answer)
            found.append(Question(str(item.question_id), item.category, answer, (chat,)))
        return found

    def _references(self, items: Sequence[Item], data: DataFolder) -> list[str]:
        """The reference answer to each item."""
        path = data.find(f"{FOLDER}/answers_gpt4.jsonl")
        data.text(path)
        wanted = {str(item.question_id) for item in items}
        given = [one for one in read_answers(path) if one.question_id in wanted]
        answers = join_answers(self, items, given, path)
        return [answers[self.key(item)] for item in items]

    def can_read(self, reply: str) -> bool:
        return read_review(reply) is not None

    def read_verdicts(self, path: Path) -> dict[str, Row]:
        return by_unique(read_json_lines(path, path.read_text(encoding="utf-8")), "question_id")

    def verdicts_text(self, verdicts: Sequence[Verdict], facts: Mapping[str, str]) -> str:
        rows = []
        for question, reply, problem in verdicts:
            scores = read_review(reply)
            row = {
                "question_id": question.name,
                "category": f"llava_bench_{question.category}",
                "content": reply,
                "tuple": None if scores is None else list(scores),
                "judge": facts["judge"],
                "judging": dict(facts),
                "answer_sha256": answer_hash(question.answer),
            }
            rows.append(row | ({"problem": problem} if problem else {}))
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _interval(reviews: Sequence[ReviewScores], pictures: Sequence[Hashable]) -> tuple[float, float] | tuple[None, None]:
    reference = np.array([one.reference for one in reviews])
    model = np.array([one.model for one in reviews])

    def figure(drawn: Weights) -> float:
        points = float(drawn @ reference)
        # Without points of the reference answers there is no figure, and with such a draw no interval.
        return 100 * float(drawn @ model) / points if points else math.nan

    return bootstrap_interval(pictures, figure)


def _context(row: Row) -> str:
    """The description of a picture; the release has one text, and other sets of this form a list of sentences."""
    caption = row["caption"]
    sentences = [caption] if isinstance(caption, str) else caption
    if not isinstance(sentences, list) or not all(isinstance(one, str) for one in sentences):
        raise DataError(f"{row.where} has neither a text nor a list of texts as caption")
    return "\n".join(sentences)


BENCHMARKS = (LlavaBench(),)
