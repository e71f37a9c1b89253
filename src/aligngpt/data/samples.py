"""One sample of image–text data, and the LLaVA record it is written as."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aligngpt.data.record_formats import IMAGE_PLACEHOLDER, RecordError, Said, images_beside, what_is_said

__all__ = ["RecordError", "Role", "Sample", "Turn", "parse_record", "to_record"]

Role = Literal["user", "assistant"]


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
        system: what the model is told before the conversation, where the record has it.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...] = ()
    level: int | None = None
    score: float | None = None
    kind: str | None = None
    record: int = 0
    system: str | None = None

    @property
    def caption(self) -> str:
        """The text of the assistant's first turn, without outer white space."""
        return self.turns[1].text.strip()

    def messages(self) -> list[dict[str, Any]]:
        """The conversation in transformers' chat format, with a part `{"type": "image"}` for each image."""
        messages: list[dict[str, Any]] = [
            {"role": turn.role, "content": [{"type": "text", "text": turn.text}]} for turn in self.turns
        ]
        messages[0]["content"] = [{"type": "image"} for _ in self.images] + [
            {"type": "text", "text": self.turns[0].text}
        ]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system}]})
        return messages


def parse_record(record: object, index: int = 0) -> Sample:
    """A sample out of a record as LLaVA, ShareGPT or OpenAI write it, or of a pair of image and caption.

    A pair is `{"image", "caption"}` or `{"image", "question", "answer"}`; the others are lists of turns, see
    `what_is_said`. As in LLaVA, a conversation that begins with the assistant loses its first turn, and images of
    placeholders in later turns are shown with the first. The level is read from the field `similarity` (an integer
    0…N-1, as the authors' files have it; a float there is a score).

    Args:
        record: one JSON object.
        index: its number in the file.

    Raises:
        RecordError: the record says nothing that can be trained or asked; the message names the field.
    """
    if not isinstance(record, Mapping):
        raise RecordError("not_an_object", f"expected a JSON object, found {type(record).__name__}")
    said = what_is_said(record)
    system = said.pop(0) if said and said[0].speaker == "system" else None
    if said and said[0].speaker == "assistant":
        said = said[1:]
    if len(said) < 2:
        raise RecordError("no_conversation", "a user's turn and the assistant's answer are needed")
    images = _images(record, system, said)
    return Sample(
        id=str(index if record.get("id") is None else record["id"]),
        turns=_turns(said, with_images=bool(images)),
        images=images,
        level=_level(record),
        score=_score(record),
        kind=None if record.get("question_type") is None else str(record["question_type"]),
        record=index,
        system=_system(system),
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
    if sample.system is not None:
        record["conversations"].insert(0, {"from": "system", "value": sample.system})
    if sample.kind is not None:
        record["question_type"] = sample.kind
    if sample.level is not None:
        record["similarity"] = sample.level - 1
    if sample.score is not None:
        record["score"] = sample.score
    return record


def _images(record: Mapping[str, Any], system: Said | None, said: list[Said]) -> tuple[str, ...]:
    """The record's images, of which there are as many as placeholders, or none of these."""
    told = [] if system is None else [system]
    for turn in [*told, *said[1:]]:
        if turn.parts:
            raise RecordError(
                "later_image",
                f"an image is part of a turn of the {turn.speaker}; images must come with the first question, so move "
                "it there or make the turn a record of its own",
            )
    beside, within = images_beside(record), said[0].images
    if beside and within:
        raise RecordError(
            "image_field", "images are named both in the first turn and in a field beside it; name them once"
        )
    images = beside or within
    placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in [*told, *said])
    if placeholders and placeholders != len(images):
        counted = (
            f"{placeholders} images and <image> placeholders and names"
            if said[0].parts
            else f"{placeholders} <image> placeholders and the field `image`"
        )
        raise RecordError("image_count", f"the text has {counted} {len(images)} images")
    return images


def _turns(said: list[Said], *, with_images: bool) -> tuple[Turn, ...]:
    """The turns, user and assistant in turn, without placeholders."""
    turns: list[Turn] = []
    for number, turn in enumerate(said):
        expected: Role = "user" if number % 2 == 0 else "assistant"
        if turn.speaker != expected:
            raise RecordError("wrong_roles", f"turn {number + 1} is the {turn.speaker}'s, expected the {expected}'s")
        text = turn.text.replace(IMAGE_PLACEHOLDER, "")
        # As LLaVA does: what stands beside an image is stripped, other texts stay as they are.
        if IMAGE_PLACEHOLDER in turn.text or (number == 0 and with_images):
            text = text.strip()
        # A pair's first turn is the picture alone.
        if not text.strip() and not (number == 0 and with_images):
            raise RecordError("empty_text", f"turn {number + 1}, the {expected}'s, is empty")
        _check_unicode(text, f"turn {number + 1}, the {expected}'s")
        turns.append(Turn(expected, text))
    if len(turns) % 2:
        turns.pop()
    return tuple(turns)


def _system(turn: Said | None) -> str | None:
    """What the system says; an empty text, which some files have in every record, is none."""
    if turn is None:
        return None
    text = turn.text.replace(IMAGE_PLACEHOLDER, "")
    _check_unicode(text, "the system's turn")
    return text if text.strip() else None


def _check_unicode(text: str, where: str) -> None:
    """A text must be such that it can be tokenized and stored; JSON lets one be cut in the middle of an emoji."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError("broken_text", f"{where}, holds half a character") from error


def _level(record: Mapping[str, Any]) -> int | None:
    """An integer in `similarity` is a level, 0…N-1; a float there is a score, as in LAION's files."""
    found = record.get("similarity")
    if found is None or isinstance(found, float):
        return None
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise RecordError("level", f"`similarity` must be a level 0…N-1, found {found!r}")
    return found + 1


def _score(record: Mapping[str, Any]) -> float | None:
    similarity = record.get("similarity")
    return similarity if "score" not in record and isinstance(similarity, float) else _number(record, "score")


def _number(record: Mapping[str, Any], name: str) -> float | None:
    found = record.get(name)
    if found is not None and (isinstance(found, bool) or not isinstance(found, (int, float))):
        raise RecordError(name, f"`{name}` must be a number, found {found!r}")
    return found
