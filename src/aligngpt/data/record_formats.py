"""What a record says, whichever way it is written: LLaVA's, ShareGPT's, OpenAI's `messages`, or a pair.

Each way gives the same: what is said, with `<image>` where a picture stands, and the names of the pictures.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from aligngpt.errors import AlignGPTError

Speaker = Literal["system", "user", "assistant"]
IMAGE_PLACEHOLDER = "<image>"
SPEAKERS: dict[str, Speaker] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "chatgpt": "assistant",
}

# Two letters at least, so that a drive of Windows is none.
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)


class RecordError(AlignGPTError):
    """A record is no sample; `reason` is a short name of why."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Said(NamedTuple):
    """What one side says once.

    Attributes:
        speaker: system, user or assistant.
        text: with `<image>` where a picture stands.
        parts: how many of these placeholders stand for parts of a message.
        images: the paths that these parts name.
    """

    speaker: Speaker
    text: str
    parts: int = 0
    images: tuple[str, ...] = ()


def what_is_said(record: Mapping[str, Any]) -> list[Said]:
    """The turns of a record as they are written, of whatever roles and in whatever order.

    Read are `conversations` and `messages`, each a list of turns with `from` and `value` or with `role` and `content`,
    and pairs of `question` and `answer`, or `caption` alone.

    Raises:
        RecordError: a turn has no text or a role that is not known, or a part of it cannot be used.
    """
    for field in ("conversations", "messages"):
        turns = record.get(field)
        if turns is None:
            continue
        if not isinstance(turns, list):
            raise RecordError("no_conversation", f"`{field}` must be a list, found {turns!r:.80}")
        return [_said(turn, number) for number, turn in enumerate(turns, start=1)]
    return _pair(record)


def images_beside(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The pictures that the field `image` or `images` of a record names.

    Raises:
        RecordError: the field holds something else than paths, or both fields are there and differ.
    """
    found = {field: _listed(record[field], field) for field in ("image", "images") if record.get(field) is not None}
    if len({names for names in found.values() if names}) > 1:
        raise RecordError("image_field", "the fields `image` and `images` name different images; keep one of them")
    return next((names for names in found.values() if names), ())


def _listed(found: object, field: str) -> tuple[str, ...]:
    listed = found if isinstance(found, list) else [found]
    names = [name for name in listed if isinstance(name, str) and name]
    if len(names) < len(listed):
        raise RecordError("image_field", f"the field `{field}` must be a path or a list of paths, found {found!r:.80}")
    return tuple(_local(name, f"the field `{field}`") for name in names)


def _local(name: str, where: str) -> str:
    if _URL.match(name):
        raise RecordError(
            "remote_image",
            f"{where} names {name:.80}, expected the path of a file; download the picture and give its path",
        )
    return name


def _said(turn: object, number: int) -> Said:
    if not isinstance(turn, Mapping):
        raise RecordError("no_conversation", f"turn {number} needs the texts `from` and `value`, found {turn!r:.80}")
    role = turn.get("from", turn.get("role"))
    content = turn.get("value", turn.get("content"))
    if not isinstance(role, str) or not isinstance(content, str | list):
        raise RecordError(
            "no_conversation",
            f"turn {number} needs the texts `from` and `value`, or `role` and `content`, found {turn!r:.80}",
        )
    if role not in SPEAKERS:
        raise RecordError("wrong_roles", f"turn {number} is from {role!r}, expected one of {', '.join(SPEAKERS)}")
    if isinstance(content, str):
        return Said(SPEAKERS[role], content)
    parts = [_part(part, number) for part in content]
    return Said(
        SPEAKERS[role],
        "".join(IMAGE_PLACEHOLDER if part.text is None else part.text for part in parts),
        parts=sum(part.text is None for part in parts),
        images=tuple(part.image for part in parts if part.image is not None),
    )


class _Part(NamedTuple):
    """A text, or an image, of which the path may be elsewhere."""

    text: str | None
    image: str | None = None


def _part(part: object, number: int) -> _Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind == "text" and isinstance(part.get("text"), str):
        return _Part(part["text"])
    if isinstance(part, Mapping) and kind in ("image", "image_url"):
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


def _pair(record: Mapping[str, Any]) -> list[Said]:
    question = record.get("question", "")
    answer = next((record[name] for name in ("answer", "caption", "text") if name in record), None)
    if not isinstance(question, str) or not isinstance(answer, str):
        raise RecordError(
            "no_conversation",
            "the record needs `conversations`, or `messages`, or `caption`, or `question` and `answer`, as texts; "
            f"found {', '.join(f'`{field}`' for field in record) or 'nothing'}",
        )
    return [Said("user", question.strip()), Said("assistant", answer.strip())]
