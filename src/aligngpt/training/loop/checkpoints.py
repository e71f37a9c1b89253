"""Atomic checkpoints: marked complete once everything is on disk, and verified when they are read."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import xxhash

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write

COMPLETE_FILE = "complete.json"


def mark_complete(checkpoint: Path, seconds: float) -> None:
    """Sync the files of a checkpoint to disk, then mark it complete with the size and a checksum of each file.

    Args:
        checkpoint: its folder, `checkpoint-<step>`.
        seconds: training time up to the checkpoint.
    """
    files = {str(file.relative_to(checkpoint)): file for file in sorted(_files(checkpoint))}
    for path in files.values():
        # The mark must not survive a power loss that the files do not: older checkpoints are removed once it exists.
        with path.open("rb") as written:
            os.fsync(written.fileno())
    content = {
        "step": step_of(checkpoint),
        "seconds": seconds,
        "sizes": {name: path.stat().st_size for name, path in files.items()},
        "checksums": {name: _checksum(path) for name, path in files.items()},
    }
    with atomic_write(checkpoint / COMPLETE_FILE) as file:
        json.dump(content, file, indent=2)


def newest_checkpoint(folder: Path, *, verify: bool = False) -> Path | None:
    """The newest complete checkpoint in `folder`; None if there is none.

    Args:
        folder: of the checkpoints.
        verify: check that its files are unchanged since it was written.

    Raises:
        AlignGPTError: files of it are missing or have changed.
    """
    found = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE_FILE).is_file()]
    newest = max(found, key=step_of, default=None)
    if newest is not None and verify:
        _check(newest)
    return newest


def checkpoint_seconds(checkpoint: Path) -> float:
    """Training time up to a checkpoint, in seconds."""
    return float(_mark(checkpoint)["seconds"])


def remove_checkpoints(folder: Path, keep: Path | None) -> None:
    """Remove every checkpoint except `keep`, including incomplete ones."""
    for path in folder.glob("checkpoint-*"):
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written; -1 if its name has no number."""
    found = re.search(r"(\d+)$", checkpoint.name)
    return int(found.group(1)) if found else -1


def _files(checkpoint: Path) -> list[Path]:
    return [path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE_FILE]


def _mark(checkpoint: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((checkpoint / COMPLETE_FILE).read_text(encoding="utf-8"))
        return {
            "seconds": float(content["seconds"]),
            "sizes": dict(content.get("sizes", {})),
            "checksums": dict(content.get("checksums", {})),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(checkpoint, f"{COMPLETE_FILE} cannot be read: {error}") from error


def _check(checkpoint: Path) -> None:
    mark = _mark(checkpoint)
    for name, size in mark["sizes"].items():
        path = checkpoint / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes"
            raise _damaged(checkpoint, f"{name} {what}, expected {size}")
        if name in mark["checksums"] and _checksum(path) != mark["checksums"][name]:
            raise _damaged(checkpoint, f"{name} has changed since it was written (its checksum differs)")


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()


def _damaged(checkpoint: Path, what: str) -> AlignGPTError:
    return AlignGPTError(
        f"the checkpoint {checkpoint} is damaged: {what}. Restore it, or remove the folder to restart the stage"
    )
