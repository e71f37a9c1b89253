"""The image, caption and `.json` fields of the tar members that form one sample."""

from typing import Any

from aligngpt.data.images.reference import Picture
from aligngpt.data.records.captions import checked_caption
from aligngpt.data.records.error import RecordError
from aligngpt.data.sources.fields import CAPTION_COLUMNS, ColumnNames
from aligngpt.data.sources.json_keys import REPEATED_KEY, RepeatedKeys, decoded
from aligngpt.data.sources.tar_samples import TarSample


def picture_of_members(members: TarSample) -> Picture:
    if not members.pictures:
        raise RecordError("no_picture", "there is no image with this key")
    if len(members.pictures) > 1:
        raise RecordError("image_count", f"a pair has one image, the sample has {len(members.pictures)}")
    return members.pictures[0]


def values_of_members(members: TarSample) -> dict[str, Any]:
    """The fields of the sample's `.json`; empty if there is none, or if it is broken and there is a text.

    Raises:
        RecordError: it is broken or not an object, or has a key twice; or the sample has neither an image nor a text,
            or a member that is a link.
    """
    if members.links:
        raise RecordError(
            "link",
            f"{members.links[0]!r} is a link to a file that is not read; pack with `tar --hard-dereference` (and with "
            "`-h` for symbolic links)",
        )
    if members.others and not members.pictures and not members.has_text:
        names = f"{members.others[0]!r}" + (f" and {len(members.others) - 1} more" if members.others[1:] else "")
        raise RecordError("unpaired", f"expected an image and a .txt or .json of the same name, found only {names}")
    if members.json is None:
        return {}
    try:
        found = decoded(members.json)
    except (ValueError, RecursionError) as error:
        if members.text is not None:
            return {}
        raise RecordError("broken_json", f"its .json cannot be read: {error}") from error
    if isinstance(found, RepeatedKeys):
        raise RecordError("repeated_key", f"its .json: {REPEATED_KEY}")
    if isinstance(found, dict):
        return found
    raise RecordError("not_an_object", f"expected a JSON object, found {type(found).__name__}")


def caption_of_members(members: TarSample, values: dict[str, Any], names: ColumnNames) -> str:
    if members.text is not None and names.caption is None:
        if len(members.texts) > 1:
            raise RecordError(
                "text_count", f"its texts {' and '.join(map(repr, members.texts))} differ, expected one caption"
            )
        try:
            return checked_caption(members.text.decode("utf-8-sig"), ".txt")
        except UnicodeDecodeError as error:
            raise RecordError("broken_text", "its .txt is not UTF-8") from error
    wanted = CAPTION_COLUMNS if names.caption is None else (names.caption,)
    name = next((name for name in wanted if name in values), wanted[0])
    return checked_caption(values.get(name), name)
