"""The images of a record, in the order in which they are read."""

from collections.abc import Mapping, Sequence
from typing import Any

from aligngpt.data.records.error import RecordError
from aligngpt.data.records.tags import IMAGE_PLACEHOLDER
from aligngpt.data.records.turns import Said, local_path


def pictures_of(record: Mapping[str, Any], system: Said | None, said: Sequence[Said]) -> tuple[str, ...]:
    """The record's image paths, one per placeholder if there are placeholders.

    Args:
        record: names the images in `image` or `images`, unless parts of the turns do.
        system: the system turn, if there is one.
        said: the other turns, starting with the first question.

    Raises:
        RecordError: an image is in a turn of the system or the assistant, or the numbers of images and placeholders
            differ.
    """
    for turn in [*([] if system is None else [system]), *said]:
        if turn.speaker != "user" and IMAGE_PLACEHOLDER in turn.text:
            raise RecordError(
                "image_in_answer" if turn.speaker == "assistant" else "image_in_system",
                f"an image is in a turn of the {turn.speaker}; images must be in turns of the user, so move it to a "
                "question",
            )
    beside, within = images_beside(record), tuple(name for turn in said for name in turn.images)
    if beside and within:
        raise RecordError(
            "image_field", "images are named both in a turn and in a field beside the turns; name them once"
        )
    images = beside or within
    placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in said)
    if placeholders and placeholders != len(images):
        counted = (
            f"{placeholders} images and <image> placeholders but names"
            if any(turn.parts for turn in said)
            else f"{placeholders} <image> placeholders but the field `image` names"
        )
        raise RecordError("image_count", f"the text has {counted} {len(images)} images")
    return images


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
    return tuple(local_path(name, f"the field `{field}`") for name in names)
