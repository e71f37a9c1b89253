"""Where the images of a turn stand: in front of its text, or inside it.

As in LLaVA, images that all stand at the end of a text are shown before it. Images stay where they are if there is
text on both sides of one, or if some stand before the text and others after it.
"""

import re
from typing import Any

from aligngpt.data.records.tags import IMAGE_PLACEHOLDER

_FRONT = re.compile(r"(?:<image>\s*)*")


def placed(text: str) -> str:
    """The text with its images in the standard form: each in front on a line of its own, or all where they are.

    Args:
        text: with `<image>` for each image; returned unchanged if there is none.
    """
    count = text.count(IMAGE_PLACEHOLDER)
    if not count:
        return text
    text = text.strip()
    words = _FRONT.sub("", text, count=1)
    if IMAGE_PLACEHOLDER in words:
        words = text
        while words.endswith(IMAGE_PLACEHOLDER):
            words = words.removesuffix(IMAGE_PLACEHOLDER).rstrip()
    if IMAGE_PLACEHOLDER in words:
        return text
    return "\n".join([IMAGE_PLACEHOLDER] * count + [words] * bool(words))


def moved_to_front(text: str) -> bool:
    """Whether the images of a text stand at its end, so that they are shown before it."""
    return placed(text).startswith(IMAGE_PLACEHOLDER) and not text.lstrip().startswith(IMAGE_PLACEHOLDER)


def parts_of(text: str) -> list[dict[str, Any]]:
    """The parts of a message in transformers' chat format, in order.

    Args:
        text: in the form that `placed` returns.
    """
    words, images = text, 0
    while words.startswith(IMAGE_PLACEHOLDER):
        words = words.removeprefix(IMAGE_PLACEHOLDER).removeprefix("\n")
        images += 1
    if IMAGE_PLACEHOLDER not in words:
        return [{"type": "image"}] * images + [{"type": "text", "text": words}]
    parts: list[dict[str, Any]] = []
    for place, piece in enumerate(text.split(IMAGE_PLACEHOLDER)):
        parts += [{"type": "image"}] * bool(place) + [{"type": "text", "text": piece}] * bool(piece)
    return parts
