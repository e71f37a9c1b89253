"""ScienceQA: multiple choice from school lessons; published is the accuracy on questions with a picture (IMG)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aligngpt.evaluation.benchmarks.folder import EVAL_ZIP, DataError, DataFolder, by_unique
from aligngpt.evaluation.benchmarks.frame import LETTER, LMMS, Benchmark, Item, Score, scored_by
from aligngpt.evaluation.benchmarks.intervals import mean_score
from aligngpt.evaluation.scoring_rules.letters import (
    SCIENCE_QA_LETTERS,
    science_qa_correct,
    science_qa_correct_lmms,
    science_qa_letter,
)


class Choice(NamedTuple):
    """The number of choices and the right one, counted from 0."""

    choices: int
    answer: int


class ScienceQa(Benchmark):
    """ScienceQA's test split as LLaVA asks it (Lu et al., "Learn to explain", NeurIPS 2022)."""

    name = "scienceqa"
    title = "ScienceQA-IMG"
    split = "test; the figure is of questions with a picture"
    source = (
        f"{EVAL_ZIP} `scienceqa`; `pid_splits.json`, `problems.json` and the pictures `images/test` are ScienceQA's own"
    )
    new_tokens = 1024
    picture_mode = "crop"
    column = "SQA"
    published_questions = 4_241
    scorers = scored_by(
        "LLaVA's eval_science_qa.py: the letter, 'X. …', or one 'The answer is X.'",
        lmms="lmms-eval 0.7.3: the letter, alone in either case, or followed by a dot",
    )

    def read(self, data: DataFolder) -> list[Item]:
        problems = data.json("scienceqa/problems.json")
        test = data.json("scienceqa/pid_splits.json")
        if not isinstance(problems, dict) or not isinstance(test, dict) or "test" not in test:
            raise DataError(f"{data.root}/scienceqa: problems.json and pid_splits.json are not ScienceQA's own files")
        rows = by_unique(data.records("scienceqa/llava_test_CQM-A.json"), "id")
        if missing := set(map(str, test["test"])) ^ set(rows):
            raise DataError(
                f"scienceqa/llava_test_CQM-A.json and the test split of pid_splits.json differ in {len(missing):,} "
                f"questions, such as {min(missing)}; they do not belong together"
            )
        items = []
        for name, row in rows.items():
            problem = problems.get(name, {})
            if not isinstance(problem.get("answer"), int) or not 1 <= len(problem.get("choices", ())) <= 5:
                raise DataError(f"problems.json has no choices and answer of question {name}")
            text = row["conversations"][0]["value"].replace("<image>", "").strip()
            picture = data.picture(row["image"], "scienceqa/images/test") if "image" in row else None
            truth = Choice(len(problem["choices"]), problem["answer"])
            items.append(Item(row["id"], f"{text}\n{LETTER}", picture, truth, problem.get("subject", "")))
        return items

    def record(self, item: Item) -> dict[str, Any]:
        return {"prompt": item.prompt if item.picture is None else f"<image>\n{item.prompt}"}

    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        def right(item: Item, text: str) -> float:
            if rules == LMMS:
                return float(science_qa_correct_lmms(text, item.truth.answer))
            return float(science_qa_correct(text, item.truth.choices, item.truth.answer))

        values = [right(item, text) for item, text in zip(items, texts, strict=True)]
        with_picture = [place for place, item in enumerate(items) if item.picture is not None]
        parts = {"all questions": 100 * sum(values) / len(values)}
        notes: tuple[str, ...] = ()
        unread = sum(science_qa_letter(text) is None for text in texts)
        if rules != LMMS and unread:
            notes = (
                f"{unread:,} answers have no letter {SCIENCE_QA_LETTERS[0]}–E that can be read and count as wrong",
            )
        if not with_picture:
            none = "none of the questions has a picture, so there is no figure"
            return Score(None, parts=parts, notes=(none, *notes))
        return mean_score(
            [values[place] for place in with_picture], [items[place].group for place in with_picture], parts, notes
        )


BENCHMARKS = (ScienceQa(),)
