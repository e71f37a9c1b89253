"""Paths as a person types them or a file manager drops them into a terminal."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from aligngpt.errors import AlignGPTError


def paths_in(text: str) -> list[Path]:
    """The paths in a line: one as it is, if it exists, else several separated by spaces, quoted or escaped.

    `~` and `file://` addresses are understood.

    Raises:
        AlignGPTError: there is none, or a quotation mark has no partner.
    """
    if not text.strip():
        raise AlignGPTError("/image needs a path, as in /image photo.jpg")
    whole = _path(text.strip())
    if _is_file(whole):
        return [whole]
    try:
        words = shlex.split(text, posix=os.name != "nt")
    except ValueError as error:
        raise AlignGPTError(
            f"{text.strip()} is no file, and a quotation mark in it has no partner; quote each path"
        ) from error
    return [_path(word if os.name != "nt" else word.strip("\"'")) for word in words]


def dropped(line: str) -> Sequence[Path]:
    """The files that a line consists of, as when files are dropped into the terminal; empty if it is anything else."""
    try:
        paths = paths_in(line)
    except AlignGPTError:
        return ()
    # A relative name may be a word of a question; file managers drop full paths.
    return paths if all(path.is_absolute() and _is_file(path) for path in paths) else ()


def _path(word: str) -> Path:
    if word.startswith("file://"):
        word = unquote(urlsplit(word).path)
    try:
        return Path(word).expanduser()
    except RuntimeError:  # `~name` of nobody
        return Path(word)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a null character
        return False
