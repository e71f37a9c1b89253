"""Progress with rate and ETA: a bar on a terminal, occasional plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10.0

SECONDS_BETWEEN_DRAWINGS = 0.1

console = Console(stderr=True)

_started_bars: list[Progress] = []


def _draws() -> bool:
    """Whether something can be drawn over and over. `FORCE_COLOR` makes rich take a file for a terminal."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def say(text: str) -> None:
    """Print a message on stderr, as it is: `[brackets]` and `:words:` in it, such as those of a path, mean nothing."""
    console.print(Text(text), soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    say(f"warning: {text}")


def status(what: str) -> AbstractContextManager[object]:
    """Show what is being done, on a terminal only, until it is done."""
    return console.status(Text(what)) if _draws() else nullcontext()


def track(
    items: Iterable[Item], description: str, total: int | None = None, *, initial: int = 0, unit: str = "items"
) -> Iterator[Item]:
    """Yield `items` while showing the count, the rate and the time left.

    Args:
        items: items to iterate over.
        description: what is being done, for the user.
        total: number of items including `initial`; None for `len(items) + initial` if that is known.
        initial: number of items done before, in a resumed job; not counted in the rate.
        unit: plural name of the items.
    """
    if total is None:
        total = initial + len(items) if isinstance(items, Sized) else None
    meter = Meter(description, total, initial=initial, unit=unit)
    with meter:
        for item in items:
            yield item
            meter.advance()


class Meter:
    """Context manager that shows the progress of one job; `advance` may add a remark such as the loss.

    Attributes:
        total: number of items; None if it is unknown. A new value is shown from the next `advance` on.
        done: number of items done so far.
    """

    def __init__(self, description: str, total: int | None, *, initial: int = 0, unit: str = "items") -> None:
        self.description, self.total, self.done, self.initial, self.unit = description, total, initial, initial, unit
        self._bar: Progress | None = None
        self._started = self._last_line = self._drawn = time.monotonic()

    def __enter__(self) -> "Meter":
        self._started = self._last_line = time.monotonic()
        if _draws():
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[remark]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                # A thread that draws would hold the console's lock now and then. A process that is forked at such a
                # moment, such as one that loads images, would wait for it for ever at the first thing it writes.
                auto_refresh=False,
            )
            self._bar.start()
            _started_bars.append(self._bar)
            self._task = self._bar.add_task(self.description, total=self.total, completed=self.initial, remark="")
        return self

    def advance(self, count: int = 1, remark: str = "") -> None:
        """Count `count` more items as done; `remark` is shown beside the count."""
        self.done += count
        if self._bar is not None:
            shown = " ".join(part for part in (self._rate_text(), remark) if part)
            self._bar.update(self._task, total=self.total, completed=self.done, remark=shown)
            if time.monotonic() - self._drawn >= SECONDS_BETWEEN_DRAWINGS:
                self._drawn = time.monotonic()
                self._bar.refresh()
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._line(remark)

    def __exit__(self, kind: object, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            _started_bars.remove(self._bar)
        elif kind is None:
            self._line("")

    def _rate_text(self) -> str:
        elapsed = time.monotonic() - self._started
        rate = (self.done - self.initial) / elapsed if elapsed > 0 else 0.0
        return self._per_time(rate) if rate else ""

    def _per_time(self, rate: float) -> str:
        """A rate per second, or per minute or hour if that would be 0.0."""
        for seconds, word in ((1, "s"), (60, "min")):
            if rate * seconds >= 0.1:
                return f"{rate * seconds:.1f} {self.unit}/{word}"
        return f"{rate * 3600:.1f} {self.unit}/h"

    def _line(self, remark: str) -> None:
        if console.quiet:
            return
        elapsed = time.monotonic() - self._started
        parts = [f"{self.description}: {self.done}" + (f"/{self.total}" if self.total else "")]
        rate = (self.done - self.initial) / elapsed if elapsed > 0 else 0.0
        if rate:
            parts.append(self._per_time(rate))
            if self.total and self.done < self.total:
                parts.append(f"{_duration((self.total - self.done) / rate)} left")
        if remark:
            parts.append(remark)
        print(", ".join(parts), file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _without_bars() -> None:
    """Let a forked process write as any other does: the bars on the screen are its parent's."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, FileProxy):
            setattr(sys, name, stream.rich_proxied_file)
    if _started_bars:
        # Of several bars, the first draws all.
        console.pop_render_hook()
        _started_bars.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_without_bars)
