"""The file that `aligngpt check --json` writes: whether it may be written."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from aligngpt.data.sources.remote import RemotePath, located
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import output_trouble

RESULT_KEYS = frozenset({"path", "image_root", "records", "samples", "problems", "rejected"})
"""Some of the keys of `FileCheck.facts`, by which an earlier result is known."""


def check_output(out: Path, read: Sequence[Path]) -> None:
    """Check before any work that the results may be written; an earlier result may be replaced.

    Args:
        out: the file to write.
        read: the data files and the recipe.

    Raises:
        AlignGPTError: `out` is an address, begins with `~`, or is a folder, one of the files that are read, or any
            other existing file.
    """
    if (trouble := output_trouble(out)) is not None:
        raise AlignGPTError(trouble)
    if out.is_dir():
        raise AlignGPTError(f"{out} is a folder; name a file with --json, such as {out / 'problems.json'}")
    parent = next(one for one in out.absolute().parents if one.exists())
    if not parent.is_dir():
        raise AlignGPTError(f"{out} cannot be written: {parent} is not a folder; name another file with --json")
    if out.exists() and any(path.exists() and path.samefile(out) for path in map(_on_disk, read)):
        raise AlignGPTError(f"{out}, which would be written, is a file that is read; name another with --json")
    if out.exists() and not _is_result(out):
        raise AlignGPTError(
            f"{out} exists already and is not a result of `aligngpt check --json`; name another file with --json, or "
            "remove it"
        )


def _on_disk(path: Path) -> Path:
    """The path as it is opened; what lies at an address is never the file that is written."""
    found = located(path)
    return Path(os.devnull) if isinstance(found, RemotePath) else found


def _is_result(path: Path) -> bool:
    """Whether a file has the form of a result; an empty one was written by nobody and holds nothing."""
    try:
        if path.stat().st_size == 0:
            return True
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(found, dict) or found.keys() != {"files"} or not isinstance(found["files"], list):
        return False
    return all(isinstance(one, dict) and one.keys() >= RESULT_KEYS for one in found["files"])
