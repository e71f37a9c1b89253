"""Validation of captions."""

from aligngpt.data.records.error import RecordError


def checked_caption(found: object, field: str = "caption") -> str:
    """Return a valid caption, stripped.

    Raises:
        RecordError: it is missing, not a string, empty, or contains invalid characters (NUL, lone surrogates).
    """
    if found is None:
        raise RecordError("no_caption", f"`{field}` is missing")
    if not isinstance(found, str):
        raise RecordError("no_caption", f"`{field}` must be a string, found {type(found).__name__}")
    caption = found.strip()
    if not caption:
        raise RecordError("empty_text", f"`{field}` is empty")
    if "\0" in caption:
        raise RecordError("broken_text", f"`{field}` contains a NUL character: {caption!r:.80}")
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise RecordError("broken_text", f"`{field}` contains half a character (a lone surrogate)") from error
    return caption
