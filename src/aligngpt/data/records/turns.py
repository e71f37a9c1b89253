"""A turn of a conversation as written: with a role and a text, or with a role and typed parts."""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from aligngpt.data.records.error import RecordError
from aligngpt.data.records.tags import IMAGE_PLACEHOLDER
from aligngpt.data.sources.fields import is_given
from aligngpt.data.sources.json_keys import RepeatedKeys

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

# Roles of a conversation in which a program is called (ShareGPT's, OpenAI's and ms-swift's). As in LLaMA-Factory, the
# call is what the assistant says, and the result is put to it as the user's questions are.
TOOL_SPEAKERS: dict[str, Speaker] = {
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "user",
    "tool": "user",
    "tool_response": "user",
    "function": "user",
}

_PART_MEDIA = {"video": "video", "video_url": "video", "audio": "audio", "audio_url": "audio", "input_audio": "audio"}

IMAGE_FIELDS = ("image", "images")
LOSS_FIELDS = ("loss", "weight", "train")
READ_IN_TURNS = ("from", "role", "value", "content", *IMAGE_FIELDS, *LOSS_FIELDS)
READ_IN_PARTS = ("type", "text", "image", "path", "url", "image_url", "index")

# At least two letters, so that a Windows drive letter does not match.
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)


class Said(NamedTuple):
    """One turn as written.

    Attributes:
        speaker: system, user or assistant.
        text: with `<image>` in place of each image.
        parts: number of these placeholders that come from parts of a message.
        images: the paths given in these parts, or in the turn's own `image` or `images`.
        picks: the `index` of these parts: which of the images named beside the turns each shows, from 0.
        learned: whether the turn counts in the loss, if it is an answer.
        accepted: all correct answers, if there are several; `text` is the record's `answer`, else the most frequent.
        tool: whether it is the assistant's call of a tool, or what the tool returned as the user's turn.
    """

    speaker: Speaker
    text: str
    parts: int = 0
    images: tuple[str, ...] = ()
    picks: tuple[int, ...] = ()
    accepted: tuple[str, ...] = ()
    learned: bool = True
    tool: bool = False


def local_path(name: str, where: str) -> str:
    if _URL.match(name):
        raise RecordError(
            "remote_image",
            f"{where} names {name:.80}, expected the path of a file; download the image and give its path",
        )
    return name


def images_named(fields: Mapping[str, Any], of: str = "") -> tuple[str, ...]:
    """The image paths in the field `image` or `images` of a record or a turn.

    Args:
        fields: the record or the turn.
        of: which turn it is, for messages, such as " of turn 1".

    Raises:
        RecordError: the field holds anything other than paths, or both fields are given and differ.
    """
    found = {field: _listed(fields[field], field, of) for field in IMAGE_FIELDS if fields.get(field) is not None}
    if len({names for names in found.values() if names}) > 1:
        raise RecordError("image_field", f"the fields `image` and `images`{of} name different images; keep one of them")
    return next((names for names in found.values() if names), ())


def _listed(found: object, field: str, of: str) -> tuple[str, ...]:
    listed = found if isinstance(found, list) else [found]
    names = [name for name in listed if isinstance(name, str) and name]
    # Tables write an empty name if there is no image; among other names, it is a missing image.
    if all(name is None or name == "" for name in listed):
        return ()
    if len(names) < len(listed):
        raise RecordError(
            "image_field", f"the field `{field}`{of} must be a path or a list of paths, found {found!r:.80}"
        )
    return tuple(local_path(name, f"the field `{field}`{of}") for name in names)


def turn_of(turn: object, number: int) -> list[Said]:
    """The turn in an element of `conversations` or `messages`.

    Args:
        turn: an object with `from` and `value`, or with `role` and `content`, a text or a list of parts; `image` or
            `images` beside them names the turn's own images.
        number: number of the turn, from 1, for messages.

    Raises:
        RecordError: it has no text, an unknown role, a part that is neither a text nor an image, or another number of
            images than it names.
    """
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
    is_tool = role in TOOL_SPEAKERS
    speaker = TOOL_SPEAKERS.get(role) or SPEAKERS.get(role)
    if speaker is None:
        known = ", ".join((*SPEAKERS, *TOOL_SPEAKERS))
        raise RecordError("wrong_roles", f"turn {number} is from {role!r}, expected one of {known}")
    if isinstance(content, str):
        said = Said(speaker, content, learned=is_learned(turn, number), tool=is_tool)
        return [with_own_images(said, turn, number)]
    parts = [_part(part, number) for part in content]
    said = Said(
        speaker,
        "".join(IMAGE_PLACEHOLDER if part.text is None else part.text for part in parts),
        parts=sum(part.text is None for part in parts),
        images=tuple(part.image for part in parts if part.image is not None),
        picks=tuple(part.place for part in parts if part.place is not None),
        learned=is_learned(turn, number),
        tool=is_tool,
    )
    return [with_own_images(said, turn, number)]


def with_own_images(said: Said, turn: Mapping[str, object], number: int) -> Said:
    """A turn with the images in its field `image` or `images`: where it has `<image>`, else before its text.

    Raises:
        RecordError: the field holds anything other than paths, its images are not those of the turn's parts, or not as
            many as the turn shows.
    """
    names = images_named(turn, f" of turn {number}")
    if not names or names == said.images:
        return said
    if said.images:
        raise RecordError("image_field", f"turn {number} names images both in a part and in a field; name them once")
    shown = said.text.count(IMAGE_PLACEHOLDER)
    if shown and shown != len(names):
        raise RecordError(
            "image_count",
            f"turn {number} has {shown} images and <image> placeholders but names {len(names)} images; make them equal",
        )
    if shown:
        return said._replace(images=names)
    text = "\n".join([*[IMAGE_PLACEHOLDER] * len(names), said.text])
    return said._replace(text=text, parts=len(names), images=names)


def is_learned(turn: Mapping[str, object], number: int) -> bool:
    """Whether a turn counts in the loss: ms-swift's `loss` and axolotl's `train` are true or false, OpenAI's `weight` 1
    or 0.

    Raises:
        RecordError: one of them has another value.
    """
    for field in LOSS_FIELDS:
        found = turn.get(field)
        if found is not None and found not in (0, 1):
            raise RecordError("turn_loss", f"`{field}` of turn {number} must be true or false, found {found!r:.80}")
        if found is not None and not found:
            return False
    return True


class _Part(NamedTuple):
    """A text, or an image whose path may be given elsewhere; `place` is its `index` there."""

    text: str | None
    image: str | None = None
    place: int | None = None


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
            return _Part(None, local_path(found, f"an image in turn {number}"))
        index = part.get("index")
        if found is None and kind == "image" and (index is None or type(index) is int):
            return _Part(None, place=index)
    raise RecordError(
        "message_part",
        f"turn {number} has the part {part!r:.80}, expected a text or an image, such as "
        '{"type": "text", "text": …} or {"type": "image", "path": …}',
    )
