"""The pictures of a record, and where they stand: before the first question, or the record is refused."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aligngpt.data.records.conversation import Said, images_beside
from aligngpt.data.records.error import RecordError
from aligngpt.data.records.tags import IMAGE_PLACEHOLDER

_BEFORE = re.compile(r"\s*(?:<image>\s*)*")


def pictures_of(record: Mapping[str, Any], system: Said | None, said: Sequence[Said]) -> tuple[str, ...]:
    """The record's pictures, of which there are as many as placeholders, or no placeholder.

    Args:
        record: whose `image` or `images` names them, unless parts of the first question do.
        system: what the system says.
        said: the other turns, the first question first.

    Raises:
        RecordError: a picture stands elsewhere than right before or right behind the first question, or there are
            more or fewer than placeholders.
    """
    told = [] if system is None else [system]
    for turn in [*told, *said[1:]]:
        if IMAGE_PLACEHOLDER in turn.text:
            raise RecordError(
                "image_in_answer" if turn.speaker == "assistant" else "later_image",
                f"an image stands in a turn of the {turn.speaker}; images must come with the first question, so move "
                "it there or make the turn a record of its own",
            )
    first = said[0].text
    if IMAGE_PLACEHOLDER in first and IMAGE_PLACEHOLDER in _BEFORE.sub("", first, count=1):
        behind = first.strip()
        while behind.endswith(IMAGE_PLACEHOLDER):
            behind = behind.removesuffix(IMAGE_PLACEHOLDER).rstrip()
        if IMAGE_PLACEHOLDER in behind:
            raise RecordError(
                "image_inside_text",
                f"an image stands within the first question, {first!r:.80}; images are shown before it, so put all "
                "<image> at its very front and refer to them in words (the first image, the second image)",
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
            f"{placeholders} images and <image> placeholders and names"
            if said[0].parts
            else f"{placeholders} <image> placeholders and the field `image`"
        )
        raise RecordError("image_count", f"the text has {counted} {len(images)} images")
    return images


def stands_behind(turn: Said) -> bool:
    """Whether the pictures of the first question stand at its end."""
    return bool(turn.text.strip().endswith(IMAGE_PLACEHOLDER) and turn.text.replace(IMAGE_PLACEHOLDER, "").strip())
