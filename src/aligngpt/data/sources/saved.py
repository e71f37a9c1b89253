"""The files of a data set saved by `save_to_disk`."""

import json
from pathlib import Path
from typing import Any

from aligngpt.data.sources.base import SourceError

SPLIT = "train"
"""The split that is read of a data set with several."""

SPLITS_FILE, STATE_FILE = "dataset_dict.json", "state.json"


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (folder / SPLITS_FILE).is_file() or (folder / STATE_FILE).is_file()


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a saved data set, in order: of the split `train`, or of the only split.

    Raises:
        SourceError: it has several splits and none is called `train`, its list of files cannot be read, a file is
            missing, or the order of its rows is stored apart from them.
    """
    if (folder / SPLITS_FILE).is_file():
        splits = _read(folder / SPLITS_FILE).get("splits")
        names = [str(one) for one in splits] if isinstance(splits, list) else []
        if SPLIT not in names and len(names) != 1:
            raise SourceError(
                f"{folder}: expected a split `{SPLIT}`, found {', '.join(names) or 'none'}; use the folder of one split"
            )
        folder = folder / (SPLIT if SPLIT in names else names[0])
    state = _read(folder / STATE_FILE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise SourceError(f"{folder} stores the order of its rows apart from them; load it and save it again")
    listed = state.get("_data_files")
    if not isinstance(listed, list) or not all(isinstance(one, dict) and "filename" in one for one in listed):
        raise SourceError(f"{folder / STATE_FILE} does not list the files of a data set; save the data set again")
    files = [folder / str(one["filename"]) for one in listed]
    for path in files:
        if not path.is_file():
            raise SourceError(f"{folder} is incomplete: {path.name} is missing; save the data set again")
    if not files:
        raise SourceError(f"{folder} has no records")
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}; save the data set again") from error
    return found if isinstance(found, dict) else {}
