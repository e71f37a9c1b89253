"""A conversation under way: its turns, the images of the next question, and the request that continues it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from aligngpt.inference.requests import Request
from aligngpt.printing import printable


@dataclass(frozen=True, eq=False)
class Shown:
    """An image of a conversation.

    Attributes:
        path: its absolute path.
        image: the decoded image.
    """

    path: Path
    image: Image.Image

    @property
    def name(self) -> str:
        """The file's name, to be printed."""
        return printable(self.path.name)


@dataclass(frozen=True, eq=False)
class Turn:
    """A question and its answer.

    Attributes:
        question: what was asked.
        shown: the images that came with it.
        level: the alignment level that was forced; None for the gate.
        answer: the answer, possibly stopped before its end.
    """

    question: str
    shown: tuple[Shown, ...]
    level: int | None
    answer: str


@dataclass
class Conversation:
    """Questions and answers so far.

    Attributes:
        turns: the complete turns.
        next_shown: images that go with the next question.
        level: alignment level 1…N forced for the next question; None leaves it to the gate.
    """

    turns: list[Turn] = field(default_factory=list)
    next_shown: list[Shown] = field(default_factory=list)
    level: int | None = None

    def asking(self, question: str) -> Request:
        """The request that asks `question` after all turns, with the next images before it."""
        return _request(self.turns, question, tuple(self.next_shown), self.level)

    def last_asked(self) -> Request | None:
        """The request that the last answer belongs to; None before the first."""
        if not self.turns:
            return None
        last = self.turns[-1]
        return _request(self.turns[:-1], last.question, last.shown, last.level)

    def add(self, question: str, answer: str) -> None:
        """Add a turn; the next images become its images."""
        self.turns.append(Turn(question, tuple(self.next_shown), self.level, answer))
        self.next_shown = []

    def undo(self) -> Turn | None:
        """Take back the last turn; its images go with the next question again. None if there is none."""
        if not self.turns:
            return None
        last = self.turns.pop()
        self.next_shown = [*last.shown, *self.next_shown]
        return last

    def reset(self) -> None:
        """Forget all turns and images; the level stays."""
        self.turns, self.next_shown = [], []

    def shown(self) -> list[Shown]:
        """The images of all turns, in the order in which they were shown."""
        return [one for turn in self.turns for one in turn.shown]


def _request(turns: list[Turn], question: str, shown: tuple[Shown, ...], level: int | None) -> Request:
    messages: list[dict[str, Any]] = []
    for turn in turns:
        messages.append(_user(turn.question, turn.shown))
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    images = [one.image for turn in turns for one in turn.shown]
    return Request(
        [*messages, _user(question, shown)], (*images, *(one.image for one in shown)), level=level, keep=True
    )


def _user(question: str, shown: tuple[Shown, ...]) -> dict[str, Any]:
    return {"role": "user", "content": [*({"type": "image"} for _ in shown), {"type": "text", "text": question}]}
