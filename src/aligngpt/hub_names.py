"""Distinguishes names of local files and folders from names on the Hugging Face hub."""

import difflib
import os
import re
from pathlib import Path

from aligngpt.errors import AlignGPTError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_NEAR_NAMES = 3
_ADVICE = "Give a model folder (with config.json) or a hub name, owner/name"


def local_or_hub(
    name: str | Path, what: str, error: type[AlignGPTError], *, whose: str = "", advice: str = _ADVICE
) -> str:
    """Return `name` unchanged if it exists locally or may be a hub name; call this before loading anything.

    A name is a path if it begins with `.`, `~` or `/`, has more than one slash or a backslash, if its first part is a
    local folder, or if it looks like a mistyped local folder. Any other name of the form `owner/name` (or `name`) is
    taken for a hub name.

    Args:
        name: path, or `owner/name`.
        what: what the name stands for, for the message, as in `the model`.
        error: exception class to raise.
        whose: what it belongs to, for the message, as in `of the adapter runs/lora`.
        advice: end of the message, what to do.

    Raises:
        AlignGPTError: of the class `error`: the name is a path that does not exist. Suggests similar names.
    """
    text = str(name)
    path = Path(text)
    if text and path.exists():
        return text
    near = near_paths(path)
    slip = [one for one in near if "/" in text and len(Path(one).parts) == len(path.parts)]
    if _HUB_NAME.fullmatch(text) and not slip and ("/" not in text or not Path(text.split("/")[0]).exists()):
        return text
    shown = " ".join(filter(None, (what, text or repr(text), whose)))
    said = f"; did you mean {' or '.join(slip or near)}?" if near else "."
    raise error(f"{shown} cannot be loaded: no such file or folder{said} {advice}")


def near_paths(path: Path) -> list[str]:
    """Existing paths with a similar name in place of the first missing part of `path`, and the rest if that exists."""
    if path.parts[:1] == ("~",):
        return [str(path.expanduser())] if path.expanduser().exists() else []
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    try:
        there = {entry.name.casefold(): entry.name for entry in os.scandir(missing.parent)}
    except OSError:
        return []
    near = difflib.get_close_matches(missing.name.casefold(), list(there), n=_NEAR_NAMES)
    rest = path.parts[len(missing.parts) :]
    found = [missing.with_name(there[name]) for name in near]
    return [str(one.joinpath(*rest) if one.joinpath(*rest).exists() else one) for one in found]
