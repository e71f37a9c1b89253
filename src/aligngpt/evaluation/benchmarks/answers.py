"""Files of answers: LLaVA's format and that of `aligngpt evaluate`, joined to the questions by key, never by order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.benchmarks.folder import Row, read_json_lines
from aligngpt.evaluation.benchmarks.frame import Benchmark, Item, Key


class AnswersError(AlignGPTError):
    """A file of answers cannot be read, or its answers are not to the benchmark's questions."""


@dataclass(frozen=True)
class GivenAnswer:
    """An answer as a file has it: the question's id, its prompt if the file has one, and the text."""

    question_id: str
    prompt: str | None
    text: str
    where: str


def read_answers(path: Path) -> list[GivenAnswer]:
    """The answers of a file of JSON lines: `question_id`, `prompt`, `text`, or `id`, `question`, `answer`.

    Raises:
        AnswersError: the file does not exist or a line has no id or text.
        DataError: a line is not a JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AnswersError(f"the answers {path} cannot be read: {error}") from error
    return [_given(row) for row in read_json_lines(path, text)]


def join_answers(
    benchmark: Benchmark, items: Sequence[Item], given: Sequence[GivenAnswer], path: Path
) -> dict[Key, str]:
    """The answer to each question, by key.

    An answer belongs to the question with its id; where the file has prompts, they must ask the same question. So
    answers to another version of a benchmark, whose ids mean other questions, are refused.

    Args:
        benchmark: decides which prompts ask the same question.
        items: the benchmark's questions.
        given: the answers, in any order.
        path: their file, for messages.

    Raises:
        AnswersError: an answer is to an unknown or to another question, a question has two different answers, or none.
    """
    keys: dict[str, list[Key]] = {}
    for key in dict.fromkeys(map(benchmark.key, items)):
        keys.setdefault(key.question_id, []).append(key)
    found: dict[Key, GivenAnswer] = {}
    for one in given:
        key = _key_of(benchmark, one, keys)
        before = found.setdefault(key, one)
        if before.text != one.text:
            raise AnswersError(
                f"{one.where} answers question {one.question_id} again, differently from {before.where}; "
                "remove one of them"
            )
    missing = [key for of_id in keys.values() for key in of_id if key not in found]
    if missing:
        raise AnswersError(
            f"{path} answers {len(found):,} of the {len(found) + len(missing):,} questions of {benchmark.title} "
            f"({benchmark.split}); the first without an answer is {missing[0].question_id}"
        )
    return {key: one.text for key, one in found.items()}


def _key_of(benchmark: Benchmark, given: GivenAnswer, keys: dict[str, list[Key]]) -> Key:
    of_id = keys.get(given.question_id)
    if of_id is None:
        raise AnswersError(
            f"{given.where} answers question {given.question_id}, which {benchmark.title} ({benchmark.split}) does not "
            "have; are the answers to another split or version?"
        )
    if given.prompt is None:
        if len(of_id) > 1:
            raise AnswersError(
                f"{given.where} has no prompt, and {len(of_id)} questions of {benchmark.title} have the id "
                f"{given.question_id}; use a file of answers with prompts"
            )
        return of_id[0]
    key = Key(given.question_id, benchmark.question_of(given.prompt))
    if key not in of_id:
        raise AnswersError(
            f"{given.where}: question {given.question_id} was asked as {key.question!r}, but the data folder has "
            f"{of_id[0].question!r}; the answers are to another version of {benchmark.title}"
        )
    return key


def _given(row: Row) -> GivenAnswer:
    question_id = row.get("question_id", row.get("id"))
    text, prompt = (row["text"], row.get("prompt")) if "text" in row else (row.get("answer"), row.get("question"))
    if not isinstance(question_id, str | int) or not isinstance(text, str):
        raise AnswersError(
            f"{row.where} is not an answer: expected question_id and text as in LLaVA's answers files, or id and answer"
        )
    return GivenAnswer(str(question_id), prompt if isinstance(prompt, str) else None, text, row.where)
