"""Prepared folders: complete or absent, and used again while what they were made from stays the same."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_folder

MANIFEST = "manifest.json"

Plain = str | int | float | dict[str, str] | dict[str, int]
"""What a manifest holds: values that JSON gives back unchanged."""

Facts = Mapping[str, Plain]
"""What is worth knowing about a prepared folder, by name."""


class PreparedFolderError(AlignGPTError):
    """A folder cannot be prepared because something else is already at its place."""


def prepare_folder(folder: Path, made_from: Facts, build: Callable[[Path], Facts]) -> Path:
    """Make `folder`, or leave it as it is when it was made from the same inputs and is still whole.

    The folder gets a `manifest.json` with `made_from`, the facts that `build` returns, and the size of every
    file.

    Args:
        folder: where the result is to be; only an empty folder or an earlier result is ever replaced.
        made_from: everything the content depends on (versions, checksums, options).
        build: writes the content into the empty folder it is given and returns facts worth knowing about it.

    Returns:
        `folder`, ready.

    Raises:
        PreparedFolderError: `folder` holds something that was not prepared by this function.
        AlignGPTError: whatever `build` raises; `folder` is then unchanged.
    """
    if is_prepared(folder, made_from):
        return folder
    if folder.exists() and not (folder.is_dir() and (_manifest(folder) is not None or not any(folder.iterdir()))):
        raise PreparedFolderError(
            f"{folder} is not empty and was not prepared by this command (it has no {MANIFEST} of ours); "
            "name another folder, or move what is there"
        )
    with atomic_folder(folder) as temporary:
        facts = build(temporary)
        manifest = {"made_from": dict(made_from), **facts, "files": _sizes(temporary)}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return folder


def is_prepared(folder: Path, made_from: Facts) -> bool:
    """Whether `folder` was made from these inputs and every file is there with its size."""
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
