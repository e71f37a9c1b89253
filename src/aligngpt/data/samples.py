"""One sample of image–text data, and the LLaVA record it is written as."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aligngpt.errors import AlignGPTError

Role = Literal["user", "assistant"]
IMAGE_PLACEHOLDER = "<image>"
ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class RecordError(AlignGPTError):
    """A record is no sample; `reason` is a short name of why."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says once, without image placeholders."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation about any number of images.

    Attributes:
        id: the record's own, or its number in the file.
        turns: user and assistant in turn, the user first.
        images: paths as written in the record, relative to an image root; all belong to the first turn.
        level: alignment level 1…N, where the record has one.
        score: similarity score, where the record has one.
        kind: what kind of question it is, where the record says (`question_type`).
        record: number of the record in its file, from 0.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...] = ()
    level: int | None = None
    score: float | None = None
    kind: str | None = None
    record: int = 0

    @property
    def caption(self) -> str:
        """The text of the assistant's first turn, without outer white space."""
        return self.turns[1].text.strip()

    def messages(self) -> list[dict[str, Any]]:
        """The conversation in transformers' chat format, with a part `{"type": "image"}` for each image."""
        messages = [{"role": turn.role, "content": [{"type": "text", "text": turn.text}]} for turn in self.turns]
        messages[0]["content"] = [{"type": "image"} for _ in self.images] + [
            {"type": "text", "text": self.turns[0].text}
        ]
        return messages


def parse_record(record: object, index: int = 0) -> Sample:
    """A sample out of a LLaVA record, or of a pair `{"image", "caption"}` or `{"image", "question", "answer"}`.

    As in LLaVA, a conversation that begins with the assistant loses its first turn. The level is read from the field
    `similarity` (0…N-1, as the authors' files have it).

    Args:
        record: one JSON object.
        index: its number in the file.

    Raises:
        RecordError: the record says nothing that can be trained or asked; the message names the field.
    """
    if not isinstance(record, Mapping):
        raise RecordError("not_an_object", f"expected a JSON object, found {type(record).__name__}")
    images = _images(record)
    turns, placeholders = _turns(record)
    if placeholders and placeholders != len(images):
        raise RecordError(
            "image_count",
            f"the text has {placeholders} <image> placeholders and the field `image` {len(images)} images",
        )
    return Sample(
        id=str(index if record.get("id") is None else record["id"]),
        turns=turns,
        images=images,
        level=_level(record),
        score=_number(record, "score"),
        kind=None if record.get("question_type") is None else str(record["question_type"]),
        record=index,
    )


def to_record(sample: Sample) -> dict[str, Any]:
    """The sample as a LLaVA record, which `parse_record` reads back to the same sample."""
    record: dict[str, Any] = {"id": sample.id}
    if sample.images:
        record["image"] = sample.images[0] if len(sample.images) == 1 else list(sample.images)
    values = [turn.text for turn in sample.turns]
    values[0] = "\n".join([*[IMAGE_PLACEHOLDER] * len(sample.images), *([values[0]] if values[0] else [])])
    names = {"user": "human", "assistant": "gpt"}
    record["conversations"] = [
        {"from": names[turn.role], "value": value} for turn, value in zip(sample.turns, values, strict=True)
    ]
    if sample.kind is not None:
        record["question_type"] = sample.kind
    if sample.level is not None:
        record["similarity"] = sample.level - 1
    if sample.score is not None:
        record["score"] = sample.score
    return record


def _images(record: Mapping[str, Any]) -> tuple[str, ...]:
    found = record.get("image")
    names = [] if found is None else found if isinstance(found, list) else [found]
    if not all(isinstance(name, str) and name for name in names):
        raise RecordError("image_field", f"the field `image` must be a path or a list of paths, found {found!r:.80}")
    return tuple(names)


def _turns(record: Mapping[str, Any]) -> tuple[tuple[Turn, ...], int]:
    """The turns without placeholders, and how many placeholders there were."""
    spoken = _conversation(record)
    if spoken and spoken[0].role == "assistant":
        spoken = spoken[1:]
    if len(spoken) < 2:
        raise RecordError("no_conversation", "a user's turn and the assistant's answer are needed")
    placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in spoken)
    turns = []
    for number, turn in enumerate(spoken):
        expected = "user" if number % 2 == 0 else "assistant"
        if turn.role != expected:
            raise RecordError("wrong_roles", f"turn {number + 1} is the {turn.role}'s, expected the {expected}'s")
        text = turn.text.replace(IMAGE_PLACEHOLDER, "")
        # As LLaVA does: what stands beside an image is stripped, other texts stay as they are.
        if IMAGE_PLACEHOLDER in turn.text or (number == 0 and _images(record)):
            text = text.strip()
        # A pair's first turn is the picture alone.
        if not text.strip() and not (number == 0 and _images(record)):
            raise RecordError("empty_text", f"turn {number + 1}, the {turn.role}'s, is empty")
        if not _is_unicode(text):
            raise RecordError("broken_text", f"turn {number + 1}, the {turn.role}'s, holds half a character")
        turns.append(Turn(turn.role, text))
    if len(turns) % 2:
        turns.pop()
    return tuple(turns), placeholders


def _is_unicode(text: str) -> bool:
    """Whether a text can be tokenized and stored; JSON lets a text cut inside an emoji end in half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _conversation(record: Mapping[str, Any]) -> Sequence[Turn]:
    conversation = record.get("conversations")
    if conversation is None:
        return _pair(record)
    if not isinstance(conversation, list):
        raise RecordError("no_conversation", f"`conversations` must be a list, found {conversation!r:.80}")
    turns = []
    for number, turn in enumerate(conversation, start=1):
        role = turn.get("from") if isinstance(turn, Mapping) else None
        text = turn.get("value") if isinstance(turn, Mapping) else None
        if not isinstance(role, str) or not isinstance(text, str):
            raise RecordError(
                "no_conversation", f"turn {number} needs the texts `from` and `value`, found {turn!r:.80}"
            )
        if role not in ROLES:
            raise RecordError("wrong_roles", f"turn {number} is from {role!r}, expected one of {', '.join(ROLES)}")
        turns.append(Turn(ROLES[role], text))
    return turns


def _pair(record: Mapping[str, Any]) -> Sequence[Turn]:
    question = record.get("question", "")
    answer = next((record[name] for name in ("answer", "caption", "text") if name in record), None)
    if not isinstance(question, str) or not isinstance(answer, str):
        raise RecordError(
            "no_conversation", "the record needs `conversations`, or `caption`, or `question` and `answer`, as texts"
        )
    return [Turn("user", question.strip()), Turn("assistant", answer.strip())]


def _level(record: Mapping[str, Any]) -> int | None:
    found = record.get("similarity")
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise RecordError("level", f"`similarity` must be a level 0…N-1, found {found!r}")
    return found + 1


def _number(record: Mapping[str, Any], name: str) -> float | None:
    found = record.get(name)
    if found is not None and (isinstance(found, bool) or not isinstance(found, (int, float))):
        raise RecordError(name, f"`{name}` must be a number, found {found!r}")
    return found
