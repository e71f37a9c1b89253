"""Checkpoints are atomic, and damaged ones are never loaded."""

from pathlib import Path

import pytest

from aligngpt.errors import AlignGPTError
from aligngpt.training.loop.checkpoints import (
    COMPLETE_FILE,
    checkpoint_seconds,
    mark_complete,
    newest_checkpoint,
    remove_checkpoints,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (2, 10, 9):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "weights").write_bytes(b"x" * step)
        mark_complete(checkpoint, seconds=step / 2)
    (tmp_path / "checkpoint-11").mkdir()
    return tmp_path


def test_the_newest_complete_one_counts(folder: Path) -> None:
    newest = newest_checkpoint(folder)
    assert newest == folder / "checkpoint-10"
    assert checkpoint_seconds(newest) == 5.0
    assert newest_checkpoint(folder / "nowhere") is None


def test_all_others_are_removed(folder: Path) -> None:
    remove_checkpoints(folder, keep=folder / "checkpoint-10")
    assert [path.name for path in folder.iterdir()] == ["checkpoint-10"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [("cut", "weights has 3 bytes, expected 10"), ("flip", "checksum differs"), ("gone", "weights is missing")],
)
def test_a_damaged_one_is_an_error_not_a_new_beginning(folder: Path, damage: str, says: str) -> None:
    weights = folder / "checkpoint-10" / "weights"
    weights.unlink() if damage == "gone" else weights.write_bytes({"cut": b"xxx", "flip": b"xxxxxyxxxx"}[damage])
    with pytest.raises(AlignGPTError, match=says):
        newest_checkpoint(folder, verify=True)


def test_a_mark_that_cannot_be_read_is_an_error(folder: Path) -> None:
    (folder / "checkpoint-10" / COMPLETE_FILE).write_text("{")
    with pytest.raises(AlignGPTError, match="damaged"):
        newest_checkpoint(folder, verify=True)
