"""MMBench and MMBench-CN: multiple choice, each question asked with its options in every shifted order."""

import base64
import binascii
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aligngpt.data.images.reference import Picture
from aligngpt.evaluation.benchmarks.folder import DataError, DataFolder, Row, by_unique
from aligngpt.evaluation.benchmarks.frame import LETTER, LETTER_CN, Benchmark, Item, Score, scored_by
from aligngpt.evaluation.benchmarks.intervals import mean_score
from aligngpt.evaluation.scoring_rules.letters import circular_score, mmbench_option

LETTERS = "ABCD"
SHIFT = 1_000_000
LINK = 64
"""An `image` of at most this many characters is the index of the row that has the picture."""


class Options(NamedTuple):
    """A row's options by letter, and the right letter; None where only the server knows."""

    options: dict[str, str]
    answer: str | None


class MmBench(Benchmark):
    """MMBench's dev split (Liu et al., "MMBench: is your multi-modal model an all-around player?", ECCV 2024).

    The table already has the shifted rows: the indices of a question's rows are equal modulo 10⁶.
    """

    name = "mmbench"
    title = "MMBench"
    split = "dev, English"
    source = (
        "MMBench's download page (mmbench.opencompass.org.cn or VLMEvalKit's TSV of the same name), into the folder "
        "`mmbench` of the data folder"
    )
    new_tokens = 1024
    column = "MMBench"
    published_questions = 4_377
    scorers = scored_by("VLMEvalKit's CircularEval with exact matching, no judge")
    tables: tuple[str, ...] = ("mmbench/mmbench_dev_20230712.tsv",)
    instruction = LETTER

    def read(self, data: DataFolder) -> list[Item]:
        rows = by_unique(data.table(*self.tables), "index")
        items = []
        for row in rows.values():
            options = _options(row)
            answer = row.get("answer")
            if answer is not None and _is_none(answer):
                answer = None
            if answer is not None and answer not in options:
                raise DataError(f"{row.where} has the answer {answer!r}, which is not one of its options")
            picture = _picture(row, rows)
            hint = "" if _is_none(row.get("hint", "")) else f"{row['hint']}\n"
            lines = [f"{letter}. {text}" for letter, text in options.items()]
            prompt = "\n".join([f"{hint}{row['question']}", *lines, self.instruction])
            category = "" if _is_none(row.get("category", "")) else row["category"]
            items.append(Item(_index(row), prompt, picture, Options(options, answer), category))
        return items

    def record(self, item: Item) -> dict[str, Any]:
        return {
            "prompt": item.prompt.removesuffix(f"\n{self.instruction}"),
            "round_id": 0,
            "options": list(item.truth.options.values()),
            "option_char": list(item.truth.options),
        }

    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        if any(item.truth.answer is None for item in items):
            return Score(None, notes=("the table has no answers, so only MMBench's server could score it",))
        read = [mmbench_option(text, item.truth.options) for item, text in zip(items, texts, strict=True)]
        rows = [(int(item.question_id), letter == item.truth.answer) for item, letter in zip(items, read, strict=True)]
        found = circular_score(rows)
        right: dict[int, bool] = {}
        group: dict[int, str] = {}
        for (index, correct), item in zip(rows, items, strict=True):
            right[index % SHIFT] = right.get(index % SHIFT, True) and correct
            group.setdefault(index % SHIFT, item.group)
        parts = {
            "CircularEval (all shifts right)": 100 * found.circular,
            "vanilla (unshifted rows only)": 100 * found.vanilla,
        }
        notes: tuple[str, ...] = (f"{found.questions:,} questions in {len(rows):,} rows",)
        if unread := sum(letter is None for letter in read):
            notes += (f"{unread:,} answers cannot be matched to an option and count as wrong; the server used a judge",)
        return mean_score([float(one) for one in right.values()], [group[one] for one in right], parts, notes)


class MmBenchCn(MmBench):
    """MMBench in Chinese, dev split."""

    name = "mmbench-cn"
    title = "MMBench-CN"
    split = "dev, Chinese"
    column = "MMBench-CN"
    published_questions = 4_329
    tables = ("mmbench_cn/mmbench_dev_cn_20231003.tsv", "mmbench/mmbench_dev_cn_20231003.tsv")
    instruction = LETTER_CN


def _is_none(value: str) -> bool:
    return value.strip().lower() in ("", "nan", "none")


def _index(row: Row) -> int:
    try:
        number = float(row["index"])
        if not math.isfinite(number) or number != int(number):
            raise ValueError
        return int(number)
    except ValueError:
        raise DataError(f"{row.where} has the index {row['index']!r}, expected a number") from None


def _options(row: Row) -> dict[str, str]:
    found: dict[str, str] = {}
    for letter in LETTERS:
        if letter not in row or _is_none(row[letter]):
            break
        found[letter] = row[letter]
    if not found:
        raise DataError(f"{row.where} has no options")
    return found


def _picture(row: Row, rows: dict[str, Row]) -> Picture:
    encoded, name = row["image"], row["index"]
    if len(encoded) <= LINK:
        if encoded not in rows:
            raise DataError(f"{row.where} has no picture")
        encoded, name = rows[encoded]["image"], encoded
    try:
        # The shifted rows of a question have the same picture.
        return Picture(f"row {int(name) % SHIFT}", content=base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{row.where} has a picture that is not base64: {error}") from error


BENCHMARKS = (MmBench(), MmBenchCn())
