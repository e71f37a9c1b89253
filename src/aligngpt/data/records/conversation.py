"""The turns of a record in any supported format: LLaVA, ShareGPT, OpenAI, FineVision, or a pair.

Every format is read into the same form: turns with `<image>` for each image, and the image paths.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from aligngpt.data.records.error import RecordError
from aligngpt.data.records.tags import IMAGE_PLACEHOLDER, check_tags
from aligngpt.data.sources.fields import is_given
from aligngpt.data.sources.json_keys import RepeatedKeys

__all__ = [
    "IMAGE_PLACEHOLDER",
    "RecordError",
    "Said",
    "caption_field",
    "images_beside",
    "is_given",
    "question_field",
    "what_is_said",
]

Speaker = Literal["system", "user", "assistant"]
SPEAKERS: dict[str, Speaker] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "chatgpt": "assistant",
}

TURN_FIELDS = ("conversations", "messages", "texts")
SYSTEM_FIELDS = ("system", "system_prompt")
ANSWER_FIELDS = ("answer", "answers", "label")

_PART_MEDIA = {"video": "video", "video_url": "video", "audio": "audio", "audio_url": "audio", "input_audio": "audio"}

# At least two letters, so that a Windows drive letter does not match.
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)


class Said(NamedTuple):
    """One turn as written.

    Attributes:
        speaker: system, user or assistant.
        text: with `<image>` in place of each image.
        parts: number of these placeholders that come from parts of a message.
        images: the paths given in these parts.
        accepted: all correct answers, if there are several; `text` is the record's `answer`, else the most frequent.
    """

    speaker: Speaker
    text: str
    parts: int = 0
    images: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()


def what_is_said(record: Mapping[str, Any]) -> list[Said]:
    """The turns of a record as written, with any roles in any order.

    Read are `conversations` and `messages`, each a list of turns with `from` and `value` or with `role` and `content`;
    `texts`, a list of turns with `user` and `assistant`; and pairs: a question (`question`, or `text` beside an answer
    or a `question_id`) with its `answer`, `answers` or `label`, or a `caption` or `text` alone. A `system` or
    `system_prompt` beside them is the system turn.

    Raises:
        RecordError: a turn has no text or an unknown role, a part of it cannot be used, a question has no answer, or
            the record contradicts itself.
    """
    found: dict[str, list[Said]] = {}
    for field in TURN_FIELDS:
        turns = record.get(field)
        if turns is None:
            continue
        if not isinstance(turns, list):
            raise RecordError("no_conversation", f"`{field}` must be a list, found {turns!r:.80}")
        read = _user_and_assistant if field == "texts" else _said
        found[field] = [one for number, turn in enumerate(turns, start=1) for one in read(turn, number)]
    filled = {field: said for field, said in found.items() if said} or found
    if any(said != next(iter(filled.values())) for said in filled.values()):
        raise RecordError("two_conversations", f"{' and '.join(f'`{field}`' for field in filled)} differ; keep one")
    said = next(iter(filled.values())) if filled else _pair(record)
    for turn in said:
        check_tags(turn.text, turn.speaker)
    return _with_system(record, said)


def _with_system(record: Mapping[str, Any], said: list[Said]) -> list[Said]:
    """The turns, with the system prompt from a separate field, if there is one, as the first turn."""
    told = {field: record[field] for field in SYSTEM_FIELDS if is_given(record.get(field))}
    for field, text in told.items():
        if not isinstance(text, str):
            raise RecordError("system", f"the field `{field}` must be a string, found {text!r:.80}")
    texts = list(told.values())
    if said and said[0].speaker == "system" and said[0].text.strip():
        texts.append(said[0].text)
    if len({text.strip() for text in texts}) > 1:
        raise RecordError("system", "the record has two different system prompts; keep one of them")
    if not told:
        return said
    system = Said("system", texts[0])
    check_tags(system.text, system.speaker)
    return [system, *(said[1:] if said and said[0].speaker == "system" else said)]


def images_beside(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The image paths in the field `image` or `images` of a record.

    Raises:
        RecordError: the field holds anything other than paths, or both fields are given and differ.
    """
    found = {field: _listed(record[field], field) for field in ("image", "images") if record.get(field) is not None}
    if len({names for names in found.values() if names}) > 1:
        raise RecordError("image_field", "the fields `image` and `images` name different images; keep one of them")
    return next((names for names in found.values() if names), ())


def _listed(found: object, field: str) -> tuple[str, ...]:
    listed = found if isinstance(found, list) else [found]
    names = [name for name in listed if isinstance(name, str) and name]
    # Tables write an empty name if there is no image; among other names, it is a missing image.
    if all(name is None or name == "" for name in listed):
        return ()
    if len(names) < len(listed):
        raise RecordError("image_field", f"the field `{field}` must be a path or a list of paths, found {found!r:.80}")
    return tuple(_local(name, f"the field `{field}`") for name in names)


def _local(name: str, where: str) -> str:
    if _URL.match(name):
        raise RecordError(
            "remote_image",
            f"{where} names {name:.80}, expected the path of a file; download the image and give its path",
        )
    return name


def _said(turn: object, number: int) -> list[Said]:
    if not isinstance(turn, Mapping):
        raise RecordError("no_conversation", f"turn {number} needs the strings `from` and `value`, found {turn!r:.80}")
    if isinstance(turn, RepeatedKeys):
        raise RecordError("repeated_key", f"turn {number} has a duplicate key; keep one of its values")
    role = next((turn[name] for name in ("from", "role") if turn.get(name) is not None), None)
    content = next((turn[name] for name in ("value", "content") if turn.get(name) is not None), None)
    if not isinstance(role, str) or not isinstance(content, str | list):
        raise RecordError(
            "no_conversation",
            f"turn {number} needs the strings `from` and `value`, or `role` and `content`, found {turn!r:.80}",
        )
    if role not in SPEAKERS:
        raise RecordError("wrong_roles", f"turn {number} is from {role!r}, expected one of {', '.join(SPEAKERS)}")
    for field in ("tool_calls", "function_call", "reasoning_content"):
        if is_given(turn.get(field)):
            raise RecordError(
                "unread_field", f"turn {number} has `{field}`, which is not read; move it into the text, or remove it"
            )
    if isinstance(content, str):
        return [Said(SPEAKERS[role], content)]
    parts = [_part(part, number) for part in content]
    said = Said(
        SPEAKERS[role],
        "".join(IMAGE_PLACEHOLDER if part.text is None else part.text for part in parts),
        parts=sum(part.text is None for part in parts),
        images=tuple(part.image for part in parts if part.image is not None),
    )
    return [said]


def _user_and_assistant(turn: object, number: int) -> list[Said]:
    """The two turns in an element of `texts`, as in FineVision and The Cauldron."""
    if not isinstance(turn, Mapping) or not all(isinstance(turn.get(name), str) for name in ("user", "assistant")):
        raise RecordError(
            "no_conversation", f"text {number} needs the strings `user` and `assistant`, found {turn!r:.80}"
        )
    return [Said("user", turn["user"]), Said("assistant", turn["assistant"])]


class _Part(NamedTuple):
    """A text, or an image whose path may be given elsewhere."""

    text: str | None
    image: str | None = None


def _part(part: object, number: int) -> _Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(kind, str) and kind in _PART_MEDIA:
        raise RecordError(_PART_MEDIA[kind], f"turn {number} has the part {part!r:.80}: only text and images are read")
    # If a part has both a text and an image, one of them would be lost.
    has_text = isinstance(part, Mapping) and is_given(part.get("text"))
    has_image = isinstance(part, Mapping) and any(is_given(part.get(field)) for field in ("image", "image_url"))
    if isinstance(part, Mapping) and kind == "text" and isinstance(part.get("text"), str) and not has_image:
        return _Part(part["text"])
    if isinstance(part, Mapping) and kind in ("image", "image_url") and not has_text:
        found = next((part[field] for field in ("image", "path", "url", "image_url") if part.get(field)), None)
        if kind == "image_url" and isinstance(found, Mapping):
            found = found.get("url")
        if isinstance(found, str) and found:
            return _Part(None, _local(found, f"an image in turn {number}"))
        if found is None and kind == "image":
            return _Part(None)
    raise RecordError(
        "message_part",
        f"turn {number} has the part {part!r:.80}, expected a text or an image, such as "
        '{"type": "text", "text": …} or {"type": "image", "path": …}',
    )


def question_field(record: Mapping[str, Any]) -> str | None:
    """The field that holds a pair's question; None if it has a caption instead.

    Beside an answer or a `question_id`, `text` is a question, as in LLaVA's question files.
    """
    if record.get("question") is not None:
        return "question"
    if record.get("caption") is not None or record.get("text") is None:
        return None
    marks = (*ANSWER_FIELDS, "question_id")
    # Tables have every field in every record: if `question` is one of them, an empty answer means nothing.
    asks = any(field in record for field in marks) if "question" not in record else False
    return "text" if asks or any(is_given(record.get(field)) for field in marks) else None


def caption_field(record: Mapping[str, Any]) -> str | None:
    """The field that holds a pair's caption; None if there is none."""
    return next((field for field in ("caption", "text") if record.get(field) is not None), None)


def _pair(record: Mapping[str, Any]) -> list[Said]:
    asked, caption = question_field(record), caption_field(record)
    given = [field for field in ANSWER_FIELDS if is_given(record.get(field))]
    if asked is None and caption is not None:
        # A label may accompany a caption, because both describe the image.
        if answers := [field for field in given if field != "label"]:
            raise RecordError("no_question", f"`{answers[0]}` is an answer, but there is no `question`")
        return [Said("user", ""), Said("assistant", _text(record, caption).strip())]
    if asked is None:
        raise RecordError(
            "no_conversation",
            "the record needs `conversations`, `messages`, `texts`, `caption`, or `question` and `answer`; "
            f"found {', '.join(f'`{field}`' for field in record) or 'nothing'}",
        )
    question = Said("user", _text(record, asked).strip())
    # `answer` is the answer to give; `answers` are all that count as correct.
    used = [field for field in ("answer", "answers") if field in given] or given[:1]
    listed = [_answers(record[field], field) for field in used]
    if not listed and asked == "question" and caption is not None and record.get("question_id") is None:
        listed = [[_text(record, caption).strip()]]
    if not listed and "answer" in record and isinstance(record["answer"], str):
        listed = [[record["answer"].strip()]]
    if not listed:
        raise RecordError(
            "unanswered",
            f"`{asked}` is a question without an answer: expected `answer`, `answers` or `label`, found "
            f"{', '.join(f'`{field}`' for field in record)}",
        )
    best = Counter(listed[0]).most_common(1)[0][0]
    accepted = tuple(dict.fromkeys([best, *(answer for answers in listed for answer in answers)]))
    return [question, Said("assistant", best, accepted=accepted if len(accepted) > 1 else ())]


def _text(record: Mapping[str, Any], field: str) -> str:
    found = record[field]
    if not isinstance(found, str):
        raise RecordError("no_conversation", f"`{field}` must be a string, found {found!r:.80}")
    return found


def _answers(found: object, field: str) -> list[str]:
    """The answers in a field: a string, a list of strings, or VQA's list of objects with an `answer` each."""
    listed = found if isinstance(found, list) else [found]
    texts = [one.get("answer") if isinstance(one, Mapping) else one for one in listed]
    answers = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    if not answers or not all(isinstance(text, str) for text in texts):
        raise RecordError("unanswered", f"`{field}` must be a string or a list of strings, found {found!r:.80}")
    return answers
