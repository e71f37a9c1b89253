"""Folders that are prepared atomically and reused as long as their inputs stay the same."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_folder

MANIFEST = "manifest.json"

Plain = str | int | float | dict[str, str] | dict[str, int]
"""A manifest value: one that JSON round-trips unchanged."""

Facts = Mapping[str, Plain]
"""Facts about a prepared folder, by name."""


class PreparedFolderError(AlignGPTError):
    """A folder cannot be prepared because something else already exists at its path."""


def prepare_folder(folder: Path, made_from: Facts, build: Callable[[Path], Facts]) -> Path:
    """Build `folder`, or reuse it if it was built from the same inputs and is still complete.

    The folder gets a `manifest.json` with `made_from`, the facts that `build` returns, and the size of every file.

    Args:
        folder: output folder; only an empty folder or an earlier result is ever replaced.
        made_from: everything the content depends on (versions, checksums, options).
        build: writes the content into the empty folder it is given and returns facts about it.

    Returns:
        `folder`.

    Raises:
        PreparedFolderError: `folder` contains something that was not prepared by this function.
        AlignGPTError: whatever `build` raises; `folder` is then unchanged.
    """
    if is_prepared(folder, made_from):
        return folder
    if folder.exists() and not (folder.is_dir() and (_manifest(folder) is not None or not any(folder.iterdir()))):
        raise PreparedFolderError(
            f"{folder} is not empty and was not prepared by this command (it has no valid {MANIFEST}); "
            "give another folder, or move its contents elsewhere"
        )
    with atomic_folder(folder) as temporary:
        facts = build(temporary)
        manifest = {"made_from": dict(made_from), **facts, "files": _sizes(temporary)}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return folder


def is_prepared(folder: Path, made_from: Facts) -> bool:
    """Whether `folder` was built from these inputs and every file exists with the recorded size."""
    manifest = _manifest(folder)
    if manifest is None or manifest["made_from"] != dict(made_from):
        return False
    files = manifest["files"]
    return isinstance(files, dict) and all(_size(folder / name) == size for name, size in files.items())


def _manifest(folder: Path) -> dict[str, object] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and {"made_from", "files"} <= manifest.keys() else None


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
