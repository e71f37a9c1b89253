"""Saved replies stay readable on a disk that fills up."""

import errno
import os
from pathlib import Path

import pytest

from aligngpt.scoring.judging.replies import SavedReplies


def test_a_reply_is_written_whole_where_the_disk_takes_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:7]))
    with SavedReplies(tmp_path / "replies.jsonl") as saved:
        saved.add("a", "first reply")
        saved.add("b", "second reply")
    with SavedReplies(tmp_path / "replies.jsonl") as again:
        assert [again.get(key) for key in "ab"] == ["first reply", "second reply"]


def test_half_a_reply_does_not_spoil_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    left = [9, 0]

    def filling(file: int, content: bytes) -> int:
        if not left:
            return write(file, content)
        if (room := left.pop(0)) == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content[:room])

    with SavedReplies(tmp_path / "replies.jsonl") as saved:
        monkeypatch.setattr(os, "write", filling)
        with pytest.raises(OSError, match="No space left"):
            saved.add("a", "lost")
        assert saved.get("a") is None
        saved.add("b", "kept")
    with SavedReplies(tmp_path / "replies.jsonl") as again:
        assert again.get("b") == "kept" and again.get("a") is None
