"""Which fields of a record are read, and which make it invalid because their content would be lost."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from aligngpt.data.images.suffixes import IMAGE_SUFFIXES
from aligngpt.data.records.conversation import SYSTEM_FIELDS, TURN_FIELDS
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.instructions import instruction_layout
from aligngpt.data.records.pair import ANSWER_FIELDS, caption_field, question_field
from aligngpt.data.sources.fields import is_given

IMAGE_FIELDS = ("image", "images")
PREFERENCE_FIELDS = ("chosen", "rejected", "rejected_response", "rejected_messages")
VIDEO_FIELDS, AUDIO_FIELDS = ("video", "videos"), ("audio", "audios")

# In records with turns, these fields change the question or the right answer; in pairs, they complete the question.
_BESIDE_TURNS = ("tools", "functions")
_BESIDE_PAIR = (*_BESIDE_TURNS, "instruction", "input", "output", "context", "hint", "choices", "options", "history")

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
        RecordError: the field holds video, audio or an answer that was compared with another, belongs to the question
            or the answer, or names an image in a record that would otherwise be text only.
    """
    for reason, fields in (("video", VIDEO_FIELDS), ("audio", AUDIO_FIELDS)):
        for field in fields:
            if is_given(record.get(field)):
                raise RecordError(
                    reason, f"the record has the field `{field}`: only text and images are read; leave it out"
                )
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
        # LLaMA-Factory's files write an empty list as a string.
        if field not in read_there and is_given(record.get(field)) and record[field] != "[]":
            raise RecordError(
                "unread_field",
                f"the field `{field}` is not read, and ignoring it would change the record's meaning; move its content "
                "into the turns, or remove it",
            )
    if not any(is_given(record.get(field)) for field in IMAGE_FIELDS):
        read = fields_read(record)
        for field, value in record.items():
            if field not in read and _is_picture(value):
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
    """The non-empty fields of a valid record that are not read."""
    read = fields_read(record)
    return [str(field) for field, value in record.items() if field not in read and is_given(value)]


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
