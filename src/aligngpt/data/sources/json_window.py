"""The text of a JSON file, of which only the part around the next value is in memory."""

import codecs
import json
import re
from pathlib import Path
from typing import BinaryIO

from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.byte_ranges import MAX_RECORD, BrokenLine
from aligngpt.data.sources.json_keys import DECODER

CHUNK = 1 << 16

# If a literal, an escape or a number is cut off, the decoder fails at most this many characters before the end.
CUT_MARGIN = 16

# How "surrogateescape" represents a byte that is not UTF-8; valid UTF-8 never decodes to these characters.
_NO_TEXT = re.compile("[\udc80-\udcff]")

_SPACE = re.compile(r"[ \t\n\r]*")
_decode = DECODER.raw_decode


class JsonWindow:
    """The text of a JSON array between two bytes of a file.

    Args:
        file: open for reading.
        path: its path, for errors.
        start: first byte.
        stop: end (exclusive); the end of the file if None.

    Attributes:
        text: the part in memory.
        at: index of the next character in `text`.
        byte: position of that character in the file.
        line: line of that character, from 1 within the range.
    """

    def __init__(self, file: BinaryIO, path: Path, start: int, stop: int | None) -> None:
        self._file = file
        self._path = path
        self._left = stop - start if stop is not None else None
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text = ""
        self.at = 0
        self.byte = file.seek(start)
        self.line = 1

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            space = _SPACE.match(self.text, self.at)
            assert space is not None
            self._go(space.end())
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def expect(self, character: str) -> None:
        """Consume the given character, or raise."""
        if (found := self.peek()) != character:
            raise self.error(f"expected {character!r}, found {found!r}" if found else f"no {character!r} at the end")
        self._go(self.at + 1)

    def value(self) -> object:
        """Decode and consume the JSON value that begins here."""
        while True:
            try:
                value, end = _decode(self.text, self.at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos > len(self.text) - CUT_MARGIN
                if is_cut and self._more():
                    continue
                self._go(min(error.pos, len(self.text)))
                raise self.error(error.msg) from error
            except (ValueError, RecursionError) as error:
                raise self.error(str(error)) from error
            # A number that ends at or near the end of the text (`1.5e-`) may continue after it.
            if isinstance(value, (int, float)) and end > len(self.text) - CUT_MARGIN and self._more():
                continue
            broken = _NO_TEXT.search(self.text, self.at, end)
            if broken:
                line = self.line + self.text.count("\n", self.at, broken.start())
                value = BrokenLine(f"line {line} is not UTF-8", "broken_text")
            self._go(end)
            return value

    def error(self, what: str) -> SourceError:
        """An error at the current position."""
        return SourceError(f"{self._path} is not a complete JSON array: line {self.line}: {what}")

    def _go(self, to: int) -> None:
        passed = self.text[self.at : to]
        self.byte += len(passed.encode(errors="surrogateescape"))
        self.line += passed.count("\n")
        self.at = to

    def _more(self) -> bool:
        """Read more text; return False at the end. The text doubles, so a long element is decoded only a few times."""
        kept = self.text[self.at :]
        if len(kept) > MAX_RECORD:
            raise self.error(f"an element is longer than {MAX_RECORD} characters")
        size = max(CHUNK, len(kept))
        content = self._file.read(size if self._left is None else min(size, self._left))
        if self._left is not None:
            self._left -= len(content)
        text = self._decoder.decode(content, final=not content)
        if not content:
            return False
        self.text, self.at = kept + text, 0
        return True
