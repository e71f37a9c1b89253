"""One sample of image–text data, read from a record and written as a LLaVA record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from aligngpt.data.records.conversation import what_is_said
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.fields import check_fields
from aligngpt.data.records.pictures import pictures_of
from aligngpt.data.records.places import moved_to_front, parts_of, placed
from aligngpt.data.records.tags import IMAGE_PLACEHOLDER
from aligngpt.data.records.turns import Said
from aligngpt.data.sources.json_keys import REPEATED_KEY, RepeatedKeys

__all__ = ["RecordError", "Role", "Sample", "Turn", "notes_on", "own_id", "parse_record", "to_record"]

Role = Literal["user", "assistant"]
Spoken = TypeVar("Spoken")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; in an interleaved sample, a user's text has `<image>` for each of its images."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation about any number of images.

    Attributes:
        id: the record's own, or its index in the file.
        turns: user and assistant alternately, the user first.
        images: paths as written in the record, relative to an image root, in reading order. They stand where the
            user's texts have `<image>`, or, if no text has one, before the first question.
        level: alignment level 1…N, if the record has one.
        score: similarity score, if the record has one.
        kind: type of the question, if the record has a `question_type`.
        record: index of the record in its file, from 0.
        system: system prompt, if the record has one.
        accepted: all correct answers to the last question, if there are several.
        context: indices of the answers in `turns` that are read, but not learned from.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...] = ()
    level: int | None = None
    score: float | None = None
    kind: str | None = None
    record: int = 0
    system: str | None = None
    accepted: tuple[str, ...] = ()
    context: tuple[int, ...] = ()

    @property
    def caption(self) -> str:
        """The text of the assistant's first turn, stripped."""
        return self.turns[1].text.strip()

    @property
    def is_question(self) -> bool:
        """Whether the sample looks like a question rather than a caption: by its turns and its first turn's end."""
        return len(self.turns) > 2 or self.turns[0].text.rstrip().endswith("?")

    @property
    def interleaved(self) -> bool:
        """Whether an image stands elsewhere than before the first question: inside it, or in a later turn."""
        return any(IMAGE_PLACEHOLDER in turn.text for turn in self.turns if turn.role == "user")

    def showing(self, images: Sequence[str]) -> "Sample":
        """The same conversation about other images: before the first question if their number differs."""
        turns = self.turns
        if self.interleaved and len(images) != len(self.images):
            turns = tuple(Turn(turn.role, turn.text.replace(IMAGE_PLACEHOLDER, "")) for turn in turns)
        return replace(self, images=tuple(images), turns=turns)

    def messages(self) -> list[dict[str, Any]]:
        """The conversation in transformers' chat format, with a part `{"type": "image"}` in each image's place.

        The messages in `context` have the additional entry `"loss": False`.
        """
        messages: list[dict[str, Any]] = [
            {
                "role": turn.role,
                "content": parts_of(turn.text) if turn.role == "user" else [{"type": "text", "text": turn.text}],
            }
            for turn in self.turns
        ]
        if not self.interleaved:
            messages[0]["content"] = [{"type": "image"} for _ in self.images] + messages[0]["content"]
        for place in self.context:
            messages[place]["loss"] = False
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system}]})
        return messages


def parse_record(record: object, index: int = 0) -> Sample:
    """Parse a record in the format of LLaVA, ShareGPT, OpenAI, FineVision, Alpaca, ms-swift or TRL, or a pair.

    A pair is `{"image", "caption"}` or `{"image", "question", "answer"}`; for the others see `what_is_said`. As in
    LLaVA, a conversation that begins with the assistant loses its first turn, and images at the end of a question are
    shown before it; other images stay where they are. The level is read from the field `similarity` (an integer
    0…N-1, as in the authors' files; a float there is a score).

    Args:
        record: one JSON object.
        index: its index in the file.

    Raises:
        RecordError: the record has nothing to train on or to ask, or part of it would be lost; the message names the
            field.
    """
    if not isinstance(record, Mapping):
        raise RecordError("not_an_object", f"expected a JSON object, found {type(record).__name__}")
    if isinstance(record, RepeatedKeys):
        raise RecordError("repeated_key", REPEATED_KEY)
    check_fields(record)
    system, said, _ = _in_turn(record)
    if len(said) < 2:
        if said and said[0].speaker == "user":
            raise RecordError("unanswered", "the user's question has no answer; an assistant turn is needed")
        raise RecordError("no_conversation", "a user turn and an assistant turn are needed")
    images = pictures_of(record, system, said)
    # A last question without an answer is left out with its images, which are the last ones.
    if any(IMAGE_PLACEHOLDER in turn.text for turn in said):
        images = images[: sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in _answered(said))]
    context = tuple(place for place, turn in enumerate(_answered(said)) if place % 2 and not turn.learned)
    if len(context) == len(said) // 2:
        raise RecordError(
            "no_loss", "no answer counts in the loss (`loss`, `weight` or `train`), so there is nothing to train on"
        )
    id = own_id(record)
    return Sample(
        id=str(index) if id is None else id,
        turns=_turns(said, with_images=bool(images)),
        images=images,
        level=_level(record),
        score=_score(record),
        kind=None if record.get("question_type") is None else str(record["question_type"]),
        record=index,
        system=_system(system),
        accepted=_accepted(record, said),
        context=context,
    )


def own_id(record: object) -> str | None:
    """The record's own id, from `id` or else `question_id`; None if it has neither."""
    if not isinstance(record, Mapping):
        return None
    return next((str(record[field]) for field in ("id", "question_id") if record.get(field) is not None), None)


def notes_on(record: Mapping[str, Any]) -> list[str]:
    """What parsing drops from a valid record or moves; each note continues a phrase such as "3 records"."""
    _, said, greeted = _in_turn(record)
    notes = ["beginning with the assistant, whose first turn is left out"] if greeted else []
    if len(said) % 2:
        notes.append("ending with a question without an answer, which is left out")
    if any(moved_to_front(turn.text) for turn in _answered(said)):
        notes.append("with images at the end of a question, which are shown before it")
    return notes


def _in_turn(record: Mapping[str, Any]) -> tuple[Said | None, list[Said], bool]:
    """The system turn, the turns from the user's first on, and whether an assistant turn preceded them."""
    said = what_is_said(record)
    system = said.pop(0) if said and said[0].speaker == "system" else None
    greeted = bool(said) and said[0].speaker == "assistant"
    return system, said[1:] if greeted else said, greeted


def _accepted(record: Mapping[str, Any], said: list[Said]) -> tuple[str, ...]:
    listed = record.get("accepted_answers")
    if listed is None:
        listed = said[1].accepted
    elif not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise RecordError("accepted_answers", f"`accepted_answers` must be a list of strings, found {listed!r:.80}")
    for one in listed:
        _check_unicode(one, "an accepted answer")
    return tuple(listed)


def to_record(sample: Sample) -> dict[str, Any]:
    """The sample as a LLaVA record, which `parse_record` reads back into the same sample."""
    record: dict[str, Any] = {"id": sample.id}
    if sample.images:
        record["image"] = sample.images[0] if len(sample.images) == 1 else list(sample.images)
    values = [turn.text for turn in sample.turns]
    if not sample.interleaved:
        values[0] = "\n".join([*[IMAGE_PLACEHOLDER] * len(sample.images), *([values[0]] if values[0] else [])])
    names = {"user": "human", "assistant": "gpt"}
    record["conversations"] = [
        {"from": names[turn.role], "value": value} for turn, value in zip(sample.turns, values, strict=True)
    ]
    for place in sample.context:
        record["conversations"][place]["loss"] = False
    if sample.system is not None:
        record["conversations"].insert(0, {"from": "system", "value": sample.system})
    if sample.kind is not None:
        record["question_type"] = sample.kind
    if sample.level is not None:
        record["similarity"] = sample.level - 1
    if sample.score is not None:
        record["score"] = sample.score
    if sample.accepted:
        record["accepted_answers"] = list(sample.accepted)
    return record


def _turns(said: list[Said], *, with_images: bool) -> tuple[Turn, ...]:
    """The turns, alternately user and assistant, with placeholders if an image is not before the first question."""
    turns: list[Turn] = []
    in_front = with_images and not any(IMAGE_PLACEHOLDER in turn.text for turn in _answered(said)[1:])
    for number, turn in enumerate(said):
        expected: Role = "user" if number % 2 == 0 else "assistant"
        if turn.speaker == "system":
            raise RecordError(
                "late_system",
                f"turn {number + 1} is the system's, which is read only as the first turn; move its text there, or "
                "into a question",
            )
        if turn.speaker != expected:
            raise RecordError("wrong_roles", f"turn {number + 1} is the {turn.speaker}'s, expected the {expected}'s")
        # As in LLaVA, text next to an image is stripped and other text is kept unchanged.
        text = placed(turn.text)
        if number == 0 and in_front:
            text = _without_front(text).strip()
        # The first turn of an image-caption pair is the image alone.
        if not text.strip() and not (number == 0 and in_front):
            raise RecordError("empty_text", f"turn {number + 1} ({expected}) is empty")
        _check_unicode(text, f"turn {number + 1} ({expected})")
        turns.append(Turn(expected, text))
    return tuple(_answered(turns))


def _answered(turns: list[Spoken]) -> list[Spoken]:
    """The turns without a last question that has no answer."""
    return turns[: len(turns) // 2 * 2]


def _without_front(text: str) -> str:
    """The text without its placeholders if they are all in front of it, else unchanged."""
    *images, last = parts_of(text)
    front = last["type"] == "text" and all(part["type"] == "image" for part in images)
    return str(last["text"]) if front else text


def _system(turn: Said | None) -> str | None:
    """The system prompt; None if it is empty, as it is in every record of some files."""
    if turn is None:
        return None
    text = turn.text.replace(IMAGE_PLACEHOLDER, "")
    _check_unicode(text, "the system turn")
    return text if text.strip() else None


def _check_unicode(text: str, where: str) -> None:
    """Reject a text that cannot be tokenized or stored; JSON strings may be cut in the middle of an emoji."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError("broken_text", f"{where} contains half a character (a lone surrogate)") from error


def _level(record: Mapping[str, Any]) -> int | None:
    """The level 1…N, from an integer 0…N-1 in `similarity`; a float there is a score, as in LAION's files."""
    found = record.get("similarity")
    if found is None or isinstance(found, float):
        return None
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise RecordError("level", f"`similarity` must be a level 0…N-1, found {found!r:.80}")
    return found + 1


def _score(record: Mapping[str, Any]) -> float | None:
    similarity = record.get("similarity")
    scored = record.get("score") is not None
    return similarity if not scored and isinstance(similarity, float) else _number(record, "score")


def _number(record: Mapping[str, Any], name: str) -> float | None:
    found = record.get(name)
    if found is not None and (isinstance(found, bool) or not isinstance(found, (int, float))):
        raise RecordError(name, f"`{name}` must be a number, found {found!r:.80}")
    return found
