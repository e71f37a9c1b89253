"""What a judge said about answers, and benchmarks whose figures are computed from it."""

import hashlib
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.benchmarks.folder import DataError, DataFolder, Row
from aligngpt.evaluation.benchmarks.frame import Benchmark, Item
from aligngpt.evaluation.judging.prompts import Messages

SHOWN_NAMES = 10
"""Questions without a verdict that a note names."""

_THINKING = re.compile(r"\A\s*<think(?:ing)?>.*?</think(?:ing)?>\s*", re.DOTALL)


class JudgingError(AlignGPTError):
    """Answers cannot be judged as asked."""


class Question(NamedTuple):
    """One question to a judge.

    Attributes:
        name: the benchmark's name of the question that was answered.
        category: the benchmark's own division of its questions; empty without one.
        answer: the text that is judged.
        chats: what the judge is asked; each further chat only if no reply before it could be read.
    """

    name: str
    category: str
    answer: str
    chats: tuple[Messages, ...]


class Verdict(NamedTuple):
    """A judge's reply to a question.

    Attributes:
        question: what was asked.
        reply: the last reply, without a block of thinking; empty if none came.
        problem: why the answer counts as not judged; empty if the reply can be read.
    """

    question: Question
    reply: str
    problem: str = ""


class JudgedBenchmark(Benchmark):
    """A benchmark whose `score` reads a judge's verdicts from files in its folder of results.

    Attributes:
        verdicts_file: verdicts on the model's answers.
        reference_file: verdicts on the reference answers, in the same form: how harsh the judge is.
    """

    verdicts_file: ClassVar[str]
    reference_file: ClassVar[str]

    @property
    @abstractmethod
    def prompt_hash(self) -> str:
        """Identifies the prompt, see `prompts.prompt_hash`."""

    @abstractmethod
    def judge_questions(self, items: Sequence[Item], texts: Sequence[str] | None, data: DataFolder) -> list[Question]:
        """What a judge is asked about answers, in the order of the items.

        Args:
            items: as `read` gave them, or some of them.
            texts: the answers; None for the reference answers themselves.
            data: the benchmark's files.

        Raises:
            DataError: the file with contexts or reference answers is missing, damaged or of other questions.
        """

    @abstractmethod
    def can_read(self, reply: str) -> bool:
        """Whether a reply is a verdict."""

    @abstractmethod
    def read_verdicts(self, path: Path) -> dict[str, Row]:
        """The entries of a file of verdicts by the name of the question, from this package or elsewhere.

        Raises:
            DataError: the file is damaged.
        """

    @abstractmethod
    def verdicts_text(self, verdicts: Sequence[Verdict], facts: Mapping[str, str]) -> str:
        """The content of `verdicts_file`; every entry has `judging`, the facts, and `answer_sha256`.

        Args:
            verdicts: in the order of the items.
            facts: what the verdicts depend on, by name; with `judge`, the model's name.
        """


def without_thinking(reply: str) -> str:
    """A reply without the block of thinking that some models begin with."""
    return _THINKING.sub("", reply)


def answer_hash(text: str) -> str:
    """SHA-256 of an answer: ties a verdict to what was judged."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def check_same_answer(entry: Mapping[str, Any], text: str, where: str) -> None:
    """Refuse a verdict that this package wrote about another answer; files from elsewhere do not say what was judged.

    Raises:
        DataError: the entry is about another answer than `text`.
    """
    if entry.get("answer_sha256", answer_hash(text)) != answer_hash(text):
        raise DataError(f"{where} judges another answer than the one scored here; judge again with --judge-url")


def is_foreign(entries: Iterable[Mapping[str, Any]]) -> bool:
    """Whether some verdicts were not asked for by this package."""
    return any("answer_sha256" not in one for one in entries)


def facts_of(entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What all verdicts depend on; empty if the entries are not this package's, or were not made in the same way."""
    facts = [one.get("judging") for one in entries]
    first = facts[0] if facts else None
    if not isinstance(first, dict) or any(one != first for one in facts):
        return {}
    return {str(name): str(value) for name, value in first.items()}


def named(names: Sequence[str]) -> str:
    """The first names of questions, as the end of a note."""
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
