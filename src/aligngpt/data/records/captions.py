"""What a caption must be."""

from aligngpt.data.records.error import RecordError


def checked_caption(found: object, field: str = "caption") -> str:
    """A caption without outer white space.

    Raises:
        RecordError: it is missing, no text, empty, or holds what no text holds (NUL, half a character).
    """
    if found is None:
        raise RecordError("no_caption", f"`{field}` is missing")
    if not isinstance(found, str):
        raise RecordError("no_caption", f"`{field}` must be a text, found {type(found).__name__}")
    caption = found.strip()
    if not caption:
        raise RecordError("empty_text", f"`{field}` is empty")
    if "\0" in caption:
        raise RecordError("broken_text", f"`{field}` holds a NUL character: {caption!r:.80}")
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise RecordError("broken_text", f"`{field}` holds half a character") from error
    return caption
