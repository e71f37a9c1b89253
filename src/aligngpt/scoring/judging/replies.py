"""The saved replies of judges: a file of JSON lines that is appended to, so that no question is paid for twice."""

import errno
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from aligngpt.scoring.judging.questions import JudgeError

KEY_BYTES = 20


def key_of(request: dict[str, Any], image_hash: str) -> str:
    """Identifies a request by everything the reply depends on, except for the endpoint.

    Args:
        request: the fields of the request without the image: model, text and options.
        image_hash: identifies the image and how it was prepared.
    """
    content = json.dumps([request, image_hash], sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=KEY_BYTES).hexdigest()


class SavedReplies:
    """A file of replies; a context manager. Several processes may append to the same file.

    Each line is one write of `{"key", "reply"}`, or of `{"key", "no_text"}` for a reply without text; or several writes
    where the disk takes only a part. A line that a killed process or a full disk left incomplete is ignored, and
    its question asked again.

    Args:
        path: the file; its folder must exist.

    Raises:
        JudgeError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._known: dict[str, dict[str, str]] = {"reply": {}, "no_text": {}}
        try:
            with path.open("a+b", buffering=0) as file:
                file.seek(0)
                content = file.read()
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise JudgeError(f"the saved replies {path} cannot be opened: {error.strerror or error}") from error
        self._needs_break = bool(content) and not content.endswith(b"\n")
        for line in content.splitlines():
            # Half a line, or one of another program.
            with suppress(ValueError, TypeError, KeyError):
                saved = json.loads(line)
                kind = "no_text" if "no_text" in saved else "reply"
                if isinstance(saved["key"], str) and isinstance(saved[kind], str):
                    self._known[kind][saved["key"]] = saved[kind]

    def __enter__(self) -> "SavedReplies":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)

    def __len__(self) -> int:
        return sum(map(len, self._known.values()))

    def get(self, key: str) -> str | None:
        """The reply to a request; None if there is none."""
        return self._known["reply"].get(key)

    def without_text(self, key: str) -> str | None:
        """What a reply without text was instead; None if there is no such reply to a request."""
        return self._known["no_text"].get(key)

    def add(self, key: str, reply: str) -> None:
        """Save a reply.

        Raises:
            OSError: the disk is full.
        """
        self._add(key, "reply", reply)

    def add_without_text(self, key: str, detail: str) -> None:
        """Save that a reply had no text, and what it was instead.

        Raises:
            OSError: the disk is full.
        """
        self._add(key, "no_text", detail)

    def _add(self, key: str, kind: str, value: str) -> None:
        line = json.dumps({"key": key, kind: value}) + "\n"
        content = ("\n" + line if self._needs_break else line).encode()
        # Until all of it is written, the next line must not continue this one.
        self._needs_break = True
        while content:
            # A disk that fills up takes only a part.
            if not (written := os.write(self._file, content)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            content = content[written:]
        self._needs_break = False
        self._known[kind][key] = value
