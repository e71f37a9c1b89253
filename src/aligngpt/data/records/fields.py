"""Which fields of a record are read, and which make it invalid because their content would be lost."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from aligngpt.data.images.suffixes import IMAGE_SUFFIXES
from aligngpt.data.records.conversation import SYSTEM_FIELDS, TURN_FIELDS
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.instructions import instruction_layout
from aligngpt.data.records.pair import ANSWER_FIELDS, caption_field, question_field
from aligngpt.data.records.turns import IMAGE_FIELDS, LOSS_FIELDS, READ_IN_PARTS, READ_IN_TURNS
from aligngpt.data.sources.fields import is_given

PREFERENCE_FIELDS = ("chosen", "rejected", "rejected_response", "rejected_messages")
VIDEO_FIELDS, AUDIO_FIELDS = ("video", "videos"), ("audio", "audios")

# In records with turns, these fields change the question or the right answer; in pairs, they complete the question.
_BESIDE_TURNS = ("tools", "functions")
_BESIDE_PAIR = (*_BESIDE_TURNS, "instruction", "input", "output", "context", "hint", "choices", "options", "history")

_INTO_THE_TEXT = "move it into the text, or remove it"
_IN_TURNS = {
    **dict.fromkeys(("tool_calls", "function_call", *_BESIDE_TURNS, "files"), _INTO_THE_TEXT),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), _INTO_THE_TEXT),
    **dict.fromkeys(("image_url", "image_urls"), "name the image's file in `image`"),
    **dict.fromkeys(("training", "trainable", "mask", "loss_mask", "loss_weight"), "use `loss`, true or false"),
}
"""What to do with the fields that change what a turn says or whether it is learned from."""

_ALWAYS_READ = (
    *("id", "question_id", *IMAGE_FIELDS, *SYSTEM_FIELDS),
    *("similarity", "score", "question_type", "accepted_answers"),
)

CONTENT_FIELDS = tuple(dict.fromkeys((*VIDEO_FIELDS, *AUDIO_FIELDS, *PREFERENCE_FIELDS, *_BESIDE_PAIR)))
"""Fields that are checked only to reject records that have them."""

_PICTURE_FILE = re.compile(rf"[^\n]{{1,1000}}\.(?:{'|'.join(sorted(IMAGE_SUFFIXES))}|heic)", re.IGNORECASE)


def check_fields(record: Mapping[str, Any]) -> None:
    """Reject a record if a field that is not read holds part of its content.

    Raises:
        RecordError: the field, of the record or of a turn, holds video, audio or an answer that was compared with
            another, belongs to the question or the answer, or names an image in a record that would otherwise be text
            only.
    """
    turns = list(_turns(record))
    _check_media(record, "the record")
    for _, number, turn in turns:
        _check_media(turn, f"turn {number}")
        for field, instead in _IN_TURNS.items():
            if _is_full(turn.get(field)):
                raise RecordError("unread_field", f"turn {number} has `{field}`, which is not read; {instead}")
    for field in PREFERENCE_FIELDS:
        if is_given(record.get(field)):
            raise RecordError(
                "preference_data",
                f"the field `{field}` is preference data, an answer to be compared with another, which is not read; "
                "put the better answer into the turns, and remove the field",
            )
    in_turns = any(is_given(record.get(field)) for field in TURN_FIELDS)
    layout = None if in_turns else instruction_layout(record)
    read_there = () if layout is None else layout.fields
    for field in _BESIDE_TURNS if in_turns else _BESIDE_PAIR:
        if field not in read_there and _is_full(record.get(field)):
            raise RecordError(
                "unread_field",
                f"the field `{field}` is not read, and ignoring it would change the record's meaning; move its content "
                "into the turns, or remove it",
            )
    if not any(is_given(record.get(field)) for field in IMAGE_FIELDS):
        read = fields_read(record)
        beside = ((field, value) for field, value in record.items() if field not in read)
        within = (_beside_text(name, turn) for name, _, turn in turns if not _may_show_images(turn))
        for field, value in chain(beside, *within):
            if _is_picture(value):
                raise RecordError(
                    "image_field",
                    f"the field `{field}` holds an image ({value!r:.80}), expected it in `image` or `images`; rename "
                    "the field, or remove it from a record that is text only",
                )


def fields_read(record: Mapping[str, Any]) -> set[str]:
    """The fields that the record's sample is read from, whether or not the record has them."""
    read = set(_ALWAYS_READ)
    if any(is_given(record.get(field)) for field in TURN_FIELDS):
        return read | set(TURN_FIELDS)
    if (layout := instruction_layout(record)) is not None:
        return read | set(layout.fields)
    asked = question_field(record)
    if asked is None:
        return read | {caption_field(record) or "caption"}
    given = [field for field in ANSWER_FIELDS if is_given(record.get(field))]
    return read | {asked, "answer", "answers", *(given[:1] or [caption_field(record) or "answer"])}


def fields_not_read(record: Mapping[str, Any]) -> list[str]:
    """The non-empty fields of a valid record that are not read; one of its turns is named as in `messages[].name`."""
    read = fields_read(record)
    beside = ((str(field), value) for field, value in record.items() if field not in read)
    within = (
        pair for name, _, turn in _turns(record) for pair in chain(_beside_text(name, turn), _beside_parts(name, turn))
    )
    return list(dict.fromkeys(field for field, value in chain(beside, within) if is_given(value)))


def _turns(record: Mapping[str, Any]) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """The turns of a record that are objects, each with its field and its number there, from 1."""
    in_turns = any(is_given(record.get(field)) for field in TURN_FIELDS)
    for field in TURN_FIELDS if in_turns else ("prompt", "completion"):
        turns = record.get(field)
        for number, turn in enumerate(turns if isinstance(turns, list) else [], start=1):
            if isinstance(turn, Mapping):
                yield field, number, turn


def _beside_text(name: str, turn: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of a turn that are not read."""
    read = ("user", "assistant", *IMAGE_FIELDS, *LOSS_FIELDS) if name == "texts" else READ_IN_TURNS
    return ((f"{name}[].{field}", value) for field, value in turn.items() if field not in read)


def _beside_parts(name: str, turn: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of a turn's parts that are not read."""
    for content in ("value", "content"):
        parts = turn.get(content)
        for part in parts if isinstance(parts, list) else []:
            if isinstance(part, Mapping):
                unread = (field for field in part if field not in READ_IN_PARTS)
                yield from ((f"{name}[].{content}[].{field}", part[field]) for field in unread)


def _may_show_images(turn: Mapping[str, Any]) -> bool:
    """Whether a turn names images of its own, or has parts, which may name them."""
    in_parts = any(isinstance(turn.get(content), list) for content in ("value", "content"))
    return in_parts or any(is_given(turn.get(field)) for field in IMAGE_FIELDS)


def _check_media(fields: Mapping[str, Any], where: str) -> None:
    for reason, names in (("video", VIDEO_FIELDS), ("audio", AUDIO_FIELDS)):
        for field in names:
            if is_given(fields.get(field)):
                raise RecordError(
                    reason, f"{where} has the field `{field}`: only text and images are read; leave it out"
                )


def _is_full(value: object) -> bool:
    # LLaMA-Factory's files write an empty list as a string.
    return is_given(value) and value != "[]"


def _is_picture(value: object) -> bool:
    # A loop, as in `is_given`.
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            if _PICTURE_FILE.fullmatch(one) is None:
                return False
        elif isinstance(one, Mapping):
            if not isinstance(one.get("bytes"), bytes):
                left.append(one.get("path"))
        elif isinstance(one, Iterable) and not isinstance(one, bytes) and (parts := list(one)):
            left.extend(parts)
        else:
            return False
    return True
