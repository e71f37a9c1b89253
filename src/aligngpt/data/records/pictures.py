"""The images of a record, in the order in which they are read."""

from collections.abc import Mapping, Sequence
from typing import Any

from aligngpt.data.records.error import RecordError
from aligngpt.data.records.tags import IMAGE_PLACEHOLDER
from aligngpt.data.records.turns import Said, images_named

STORED = "\0"
"""In a record's `image`: the one image that is stored with the record. No path can be this."""


def pictures_of(record: Mapping[str, Any], system: Said | None, said: Sequence[Said]) -> tuple[str, ...]:
    """The record's image paths, one per placeholder if there are placeholders; parts may show one several times.

    Args:
        record: names the images in `image` or `images`, unless the turns do; see `STORED`.
        system: the system turn, if there is one.
        said: the other turns, starting with the first question.

    Raises:
        RecordError: an image is in a turn of the system or the assistant, the numbers of images and placeholders
            differ, or an `index` is not one of an image.
    """
    for turn in [*([] if system is None else [system]), *said]:
        if turn.speaker != "user" and IMAGE_PLACEHOLDER in turn.text:
            raise RecordError(
                "image_in_answer" if turn.speaker == "assistant" else "image_in_system",
                f"an image is in a turn of the {turn.speaker}; images must be in turns of the user, so move it to a "
                "question",
            )
    beside, within = images_named(record), tuple(name for turn in said for name in turn.images)
    if beside == (STORED,) and len(set(within)) == 1:
        # The stored image is meant, whatever the turns call it.
        beside = within = beside * len(within)
    if beside == (STORED,) and len(set(within)) > 1:
        raise RecordError("image_count", f"the turns name {len(set(within))} images, but one is stored with the record")
    if beside and within and beside != within:
        raise RecordError(
            "image_field", "images are named both in a turn and in a field beside the turns; name them once"
        )
    images = beside or within
    placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in said)
    if picks := [pick for turn in said for pick in turn.picks]:
        return _picked(images, picks, placeholders)
    if placeholders and placeholders != len(images):
        counted = (
            f"{placeholders} images and <image> placeholders but names"
            if any(turn.parts for turn in said)
            else f"{placeholders} <image> placeholders but the field `image` names"
        )
        raise RecordError("image_count", f"the text has {counted} {len(images)} images")
    return images


def _picked(images: Sequence[str], picks: Sequence[int], placeholders: int) -> tuple[str, ...]:
    """The images in the order in which the parts of the turns show them by their `index`."""
    if len(picks) < placeholders:
        raise RecordError(
            "image_count", "only some of the images in the turns have an `index`; give it to all of them, or to none"
        )
    if set(picks) != set(range(len(images))):
        raise RecordError(
            "image_count",
            f"the record names {len(images)} images, but the turns show those with the `index` "
            f"{', '.join(map(str, sorted(set(picks))))} (counted from 0); show each of them, and no others",
        )
    return tuple(images[pick] for pick in picks)
