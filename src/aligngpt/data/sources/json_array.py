"""Read the elements of a JSON array one at a time, without holding the file or the list in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.byte_ranges import text_start
from aligngpt.data.sources.json_window import JsonWindow


@dataclass(frozen=True, slots=True)
class Element:
    """An element of an array: its value, first byte, and end (exclusive).

    The value of an element that is not UTF-8 is a `BrokenLine`.
    """

    value: object
    start: int
    stop: int


def read_array(path: Path) -> Iterator[Element]:
    """Yield the elements of a file that is one JSON array.

    Raises:
        SourceError: the file cannot be read, or is not a complete JSON array; the message gives the line.
    """
    try:
        with path.open("rb") as file:
            window = JsonWindow(file, path, text_start(path), None)
            window.expect("[")
            if window.peek() != "]":
                yield from _elements(window)
            window.expect("]")
            if window.peek():
                raise window.error("more text after the end of the array")
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error


def read_array_range(path: Path, start: int, stop: int) -> Iterator[Element]:
    """Yield the elements between two bytes: the first byte of an element, and the end (exclusive) of another.

    Raises:
        SourceError: as `read_array`, if the file has changed in the meantime.
    """
    try:
        with path.open("rb") as file:
            yield from _elements(JsonWindow(file, path, start, stop))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error


def _elements(window: JsonWindow) -> Iterator[Element]:
    while True:
        window.peek()
        start = window.byte
        value = window.value()
        yield Element(value, start, window.byte)
        if window.peek() != ",":
            return
        window.expect(",")
