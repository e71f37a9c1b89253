"""The images of a record and their position: with the first question, or the record is rejected."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aligngpt.data.records.conversation import Said, images_beside
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.tags import IMAGE_PLACEHOLDER

_BEFORE = re.compile(r"\s*(?:<image>\s*)*")


def pictures_of(record: Mapping[str, Any], system: Said | None, said: Sequence[Said]) -> tuple[str, ...]:
    """The record's image paths, one per placeholder if there are placeholders.

    Args:
        record: names the images in `image` or `images`, unless parts of the first question do.
        system: the system turn, if there is one.
        said: the other turns, starting with the first question.

    Raises:
        RecordError: an image is not directly before or after the first question, or the numbers of images and
            placeholders differ.
    """
    told = [] if system is None else [system]
    for turn in [*told, *said[1:]]:
        if IMAGE_PLACEHOLDER in turn.text:
            raise RecordError(
                "image_in_answer" if turn.speaker == "assistant" else "later_image",
                f"an image is in a turn of the {turn.speaker}; images must come with the first question, so move "
                "it there or make the turn a separate record",
            )
    first = said[0].text
    if IMAGE_PLACEHOLDER in first and IMAGE_PLACEHOLDER in _BEFORE.sub("", first, count=1):
        behind = first.strip()
        while behind.endswith(IMAGE_PLACEHOLDER):
            behind = behind.removesuffix(IMAGE_PLACEHOLDER).rstrip()
        if IMAGE_PLACEHOLDER in behind:
            raise RecordError(
                "image_inside_text",
                f"an image is inside the first question, {first!r:.80}; images are shown before it, so put all "
                "<image> placeholders at its start and refer to them in words (the first image, the second image)",
            )
    beside, within = images_beside(record), said[0].images
    if beside and within:
        raise RecordError(
            "image_field", "images are named both in the first turn and in a field beside it; name them once"
        )
    images = beside or within
    placeholders = first.count(IMAGE_PLACEHOLDER)
    if placeholders and placeholders != len(images):
        counted = (
            f"{placeholders} images and <image> placeholders but names"
            if said[0].parts
            else f"{placeholders} <image> placeholders but the field `image` names"
        )
        raise RecordError("image_count", f"the text has {counted} {len(images)} images")
    return images


def stands_behind(turn: Said) -> bool:
    """Whether the images of the first question come after its text."""
    return bool(turn.text.strip().endswith(IMAGE_PLACEHOLDER) and turn.text.replace(IMAGE_PLACEHOLDER, "").strip())
