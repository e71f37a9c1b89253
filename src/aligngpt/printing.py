"""Text from elsewhere that is safe to print."""

import re

_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    r"""A text with escapes such as `\x1b` for what a terminal would obey, and for what cannot be printed.

    These are control characters, except line breaks and tabs, and lone surrogates: bytes that are not UTF-8 in names of
    files, or half an emoji.
    """
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)
