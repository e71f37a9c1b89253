"""The lines of a file with lookahead, for rows that may extend over several lines."""

from collections import deque
from collections.abc import Iterator

from aligngpt.data.sources.byte_ranges import BrokenLine, Line, text_of


class LinesAhead:
    """Lines with lookahead.

    Args:
        lines: see `read_lines`.
    """

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._seen: deque[Line] = deque()

    def line(self, index: int) -> Line | None:
        """The line `index` lines ahead; None past the end."""
        while len(self._seen) <= index:
            if (line := next(self._lines, None)) is None:
                return None
            self._seen.append(line)
        return self._seen[index]

    def text(self, index: int) -> str:
        """The text of a line that `line` has returned, with bytes that are not UTF-8 kept as surrogates."""
        return self._seen[index].content.decode(errors="surrogateescape")

    def take(self, count: int) -> Line:
        """Consume lines and return the last of them."""
        for _ in range(count):
            last = self._seen.popleft()
        return last

    def broken(self, count: int) -> BrokenLine | None:
        """The first error in the text of the next lines; None if there is none."""
        texts = (text_of(line) for line, _ in zip(self._seen, range(count), strict=False))
        return next((text for text in texts if isinstance(text, BrokenLine)), None)
