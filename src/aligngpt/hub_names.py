"""Whether a name means a file or folder here, or something on the Hugging Face hub."""

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
    """The name as it is, of something that is here or may be on the hub; to be asked before anything is loaded.

    A name is a path where it begins with `.`, `~` or `/`, has more than one slash or a backslash, where its first part
    is a folder here, or where a folder here differs from it by a slip of the keyboard. What else looks like
    `owner/name` (or `name`) is left to the hub.

    Args:
        name: path, or `owner/name`.
        what: it is, for the message, as in `the model`.
        error: what to raise.
        whose: it is, for the message, as in `of the adapter runs/lora`.
        advice: what to do about it.

    Raises:
        AlignGPTError: of the kind `error`: the name is a path and nothing is there. Gives names that are near it.
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
    """Paths that are there and differ from one that is not in its first missing part; as far as they are there."""
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
