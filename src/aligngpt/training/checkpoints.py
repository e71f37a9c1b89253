"""Checkpoints that are whole or absent: marked complete once all of it was written, and looked at when read."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write

COMPLETE_FILE = "complete.json"


def mark_complete(checkpoint: Path, seconds: float) -> None:
    """Mark a checkpoint as complete, with the size of every file in it.

    Args:
        checkpoint: its folder, `checkpoint-<step>`.
        seconds: of training that went into it.
    """
    sizes = {str(file.relative_to(checkpoint)): file.stat().st_size for file in sorted(_files(checkpoint))}
    with atomic_write(checkpoint / COMPLETE_FILE) as file:
        json.dump({"step": step_of(checkpoint), "seconds": seconds, "sizes": sizes}, file, indent=2)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`; None where there is none.

    Raises:
        AlignGPTError: files of it are missing or of another size than when it was written.
    """
    found = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE_FILE).is_file()]
    newest = max(found, key=step_of, default=None)
    if newest is not None:
        _check(newest)
    return newest


def checkpoint_seconds(checkpoint: Path) -> float:
    """Seconds of training that went into a checkpoint."""
    return float(_mark(checkpoint)["seconds"])


def remove_checkpoints(folder: Path, keep: Path | None) -> None:
    """Remove every checkpoint but `keep`, half-written ones included."""
    for path in folder.glob("checkpoint-*"):
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written; -1 where its name does not say."""
    found = re.search(r"(\d+)$", checkpoint.name)
    return int(found.group(1)) if found else -1


def _files(checkpoint: Path) -> list[Path]:
    return [path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE_FILE]


def _mark(checkpoint: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((checkpoint / COMPLETE_FILE).read_text(encoding="utf-8"))
        return {"seconds": float(content["seconds"]), "sizes": dict(content.get("sizes", {}))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(checkpoint, f"{COMPLETE_FILE} cannot be read: {error}") from error


def _check(checkpoint: Path) -> None:
    for name, size in _mark(checkpoint)["sizes"].items():
        path = checkpoint / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes"
            raise _damaged(checkpoint, f"{name} {what}, expected {size}")


def _damaged(checkpoint: Path, what: str) -> AlignGPTError:
    return AlignGPTError(
        f"the checkpoint {checkpoint} is damaged: {what}. Put it back, or remove the folder to begin the stage anew"
    )
