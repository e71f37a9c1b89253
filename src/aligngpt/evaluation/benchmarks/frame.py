"""What a benchmark is: the files it reads, the questions it asks, and how answers become figures."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from aligngpt.data.images.reference import Picture
from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.benchmarks.folder import DataFolder

PictureMode = Literal["pad", "crop"]
"""`pad`: the whole picture, padded to a square; `crop`: its central square."""

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
INSTRUCTIONS = (SHORT, LETTER, LETTER_CN, UNANSWERABLE)
"""The sentences that LLaVA's prompts add to a question."""

PUBLISHED, LMMS = "published", "lmms"


def scored_by(published: str, **others: str) -> Mapping[str, str]:
    """The rule sets of a benchmark, each with the program whose rules it follows."""
    return {PUBLISHED: published, **others}


class RulesError(AlignGPTError):
    """A benchmark has no rule set of this name, or cannot be scored by it."""


class Key(NamedTuple):
    """What tells a question from the others: its id, which may repeat, and its text (see `Benchmark.question_of`)."""

    question_id: str
    question: str


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
        question_id: as in the question file.
        prompt: the text to ask, complete and without a placeholder for the picture.
        picture: the picture to ask about; None if the question has none.
        truth: what `Benchmark.score` compares the answer with; None where only a server knows.
        category: the benchmark's own division of its questions; empty without one.
    """

    question_id: str | int
    prompt: str
    picture: Picture | None
    truth: Any = None
    category: str = ""

    @property
    def group(self) -> str:
        """The picture's name, or the question's id without one: answers about one picture are alike."""
        return self.picture.name if self.picture is not None else f"question {self.question_id}"


@dataclass(frozen=True)
class Score:
    """The figures of a benchmark.

    Attributes:
        figure: the figure that papers give, in the benchmark's unit; None if it cannot be computed here.
        low, high: ends of its 95 % interval, in the same unit.
        interval: how the interval was computed; empty without one.
        parts: further figures by name.
        notes: what a reader of the figure has to know.
        judge: what a judge's verdicts depend on, by name: model, prompt, options, rules, date; empty without them.
    """

    figure: float | None
    low: float | None = None
    high: float | None = None
    interval: str = ""
    parts: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    judge: dict[str, str] = field(default_factory=dict)


class Benchmark(ABC):
    """A benchmark: subclass it in a module of `suite/`, and list an instance in the module's `BENCHMARKS`.

    Attributes:
        name: the name on the command line and of the folder with results.
        title: the name for people.
        split: the split that is asked.
        source: where the files come from, for the message if one is missing.
        new_tokens: maximum length of an answer.
        picture_mode: what the published figures of AlignGPT used.
        unit: `%` or `points`.
        scorers: rule set → the program whose rules it follows. The first is the default.
        column: the benchmark's column in `published_results.json`; None if no published figure is comparable.
        hint: help given in the prompt besides the question, such as OCR tokens.
        published_questions: how many questions the published figures are of; a figure of fewer is not compared with
            them.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    split: ClassVar[str]
    source: ClassVar[str]
    new_tokens: ClassVar[int] = 128
    picture_mode: ClassVar[PictureMode] = "pad"
    unit: ClassVar[str] = "%"
    scorers: ClassVar[Mapping[str, str]]
    column: ClassVar[str | None] = None
    hint: ClassVar[str | None] = None
    published_questions: ClassVar[int | None] = None

    @abstractmethod
    def read(self, data: DataFolder) -> list[Item]:
        """The questions, in the file's order, with the truth joined by key.

        Raises:
            DataError: a file is missing or damaged, or question and label files do not belong together.
        """

    @abstractmethod
    def score(self, items: Sequence[Item], texts: Sequence[str], rules: str, folder: Path) -> Score:
        """The figures of the answers `texts`, one for each item.

        Args:
            items: as `read` gave them.
            texts: the answers.
            rules: a name in `scorers`.
            folder: the folder with the benchmark's results, where a judge's replies are looked for.
        """

    def question_of(self, prompt: str) -> str:
        """The question in a prompt, for comparison: lower case, without instructions and surplus spaces."""
        text = prompt.replace("<image>", " ")
        for instruction in INSTRUCTIONS:
            text = text.replace(instruction, " ")
        return " ".join(text.lower().split())

    def record(self, item: Item) -> dict[str, Any]:
        """What LLaVA's answers file says about a question besides id and answer; always with `prompt`."""
        return {"prompt": item.prompt}

    def uploads(self, items: Sequence[Item], texts: Sequence[str], data: DataFolder) -> dict[str, str]:
        """Files for an evaluation server, checked against its rules: name → content.

        Raises:
            DataError: the server would refuse the file.
        """
        return {}

    def key(self, item: Item) -> Key:
        """What tells the item from the others."""
        return Key(str(item.question_id), self.question_of(item.prompt))

    def is_complete(self, questions: int) -> bool:
        """Whether this many questions are the whole benchmark, to 1 %; releases differ in single questions."""
        return self.published_questions is None or abs(questions / self.published_questions - 1) <= 0.01

    def check_rules(self, rules: str) -> None:
        """Raise RulesError if the benchmark has no such rule set."""
        if rules not in self.scorers:
            raise RulesError(f"{self.name} has no rule set {rules!r}; it can be scored by {' or '.join(self.scorers)}")
