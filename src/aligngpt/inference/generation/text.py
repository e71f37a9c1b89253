"""The text of an answer as its tokens come: never a part of a character, nothing beyond a stop text."""

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"
"""What the first bytes of a character are decoded to."""

MOST_UNFINISHED = 8
"""Tokens that may wait for the rest of a character. It has four bytes at most, so the first of more are broken."""


class AnswerText:
    """Turns tokens into text piece by piece; the pieces join to `text`.

    Args:
        tokenizer: decodes the tokens; special ones are left out.
        stop: texts that end the answer and do not belong to it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._tokens: list[int] = []
        self._decoded_to = self._read_to = 0
        self._text = ""
        self._shown = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """The text so far, without white space around it."""
        return self._text.strip()

    def add(self, token: int) -> str:
        """The new text that a token brings; empty if it has to be held back. Sets `stopped` after a stop text."""
        self._tokens.append(token)
        # The tokens before are decoded too: some tokenizers write a token differently at the beginning.
        before = self._decode(self._tokens[self._decoded_to : self._read_to])
        now = self._decode(self._tokens[self._decoded_to :])
        end = len(self._tokens)
        if now.endswith(UNFINISHED):
            end = self._broken_to(now)
            now = self._decode(self._tokens[self._decoded_to : end])
        if len(now) > len(before):
            self._append(now[len(before) :])
            self._decoded_to, self._read_to = self._read_to, end
        return self._show(self._held())

    def finish(self) -> str:
        """The text that was held back."""
        if not self.stopped and self._read_to < len(self._tokens):
            before = self._decode(self._tokens[self._decoded_to : self._read_to])
            self._append(self._decode(self._tokens[self._decoded_to :])[len(before) :])
        return self._show(0)

    def _broken_to(self, text: str) -> int:
        """How many of the tokens of a text that ends with an unfinished character can be read."""
        if len(self._tokens) - self._read_to <= MOST_UNFINISHED:
            return self._read_to
        # The unfinished character is in the last three tokens, and no other may be cut.
        ends = range(len(self._tokens) - 3, self._read_to, -1)
        whole = (end for end in ends if text.startswith(self._decode(self._tokens[self._decoded_to : end])))
        return next(whole, self._read_to)

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True) if tokens else ""
        return text

    def _append(self, new: str) -> None:
        # A stop text may begin in what was there before.
        start = max(0, len(self._text) - max(map(len, self._stop), default=0))
        self._text += new
        found = [place for stop in self._stop if (place := self._text.find(stop, start)) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.stopped = True

    def _held(self) -> int:
        """Number of characters at the end that may be the beginning of a stop text."""
        if self.stopped:
            return 0
        longest = len(self._text)
        sizes = (
            size
            for stop in self._stop
            for size in range(1, min(len(stop), longest + 1))
            if self._text.endswith(stop[:size])
        )
        return max(sizes, default=0)

    def _show(self, held: int) -> str:
        """The text not shown yet, without white space that may turn out to be at the end."""
        ready = self._text[: len(self._text) - held].rstrip()
        begin = self._shown if self._shown else len(ready) - len(ready.lstrip())
        new = ready[begin:]
        self._shown = max(self._shown, len(ready)) if new else self._shown
        return new
