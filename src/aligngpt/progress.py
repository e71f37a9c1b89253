"""Progress with rate and ETA: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10.0

console = Console(stderr=True)


def track(
    items: Iterable[Item], description: str, total: int | None = None, *, initial: int = 0, unit: str = "items"
) -> Iterator[Item]:
    """Yield `items`, showing how many are done, how fast it goes and how long it will take.

    Args:
        items: what to go through.
        description: what is being done, as a person would say it.
        total: how many there will be, counting those done before; `len(items) + initial` where known.
        initial: how many were done before (a resumed job), left out of the rate.
        unit: what one item is called.
    """
    if total is None:
        total = initial + len(items) if isinstance(items, Sized) else None
    meter = Meter(description, total, initial=initial, unit=unit)
    with meter:
        for item in items:
            yield item
            meter.advance()


class Meter:
    """The progress of one job; a context manager whose `advance` may carry a remark such as the loss."""

    def __init__(self, description: str, total: int | None, *, initial: int = 0, unit: str = "items") -> None:
        self.description, self.total, self.done, self.initial, self.unit = description, total, initial, initial, unit
        self._bar: Progress | None = None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "Meter":
        self._started = self._last_line = time.monotonic()
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[remark]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total, completed=self.initial, remark="")
        return self

    def advance(self, count: int = 1, remark: str = "") -> None:
        """Count `count` more items as done; `remark` is shown beside the count."""
        self.done += count
        if self._bar is not None:
            shown = " ".join(part for part in (self._rate_text(), remark) if part)
            self._bar.update(self._task, completed=self.done, remark=shown)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._line(remark)

    def __exit__(self, kind: object, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._line("")

    def _rate_text(self) -> str:
        elapsed = time.monotonic() - self._started
        rate = (self.done - self.initial) / elapsed if elapsed > 0 else 0.0
        return f"{rate:.1f} {self.unit}/s" if rate else ""

    def _line(self, remark: str) -> None:
        elapsed = time.monotonic() - self._started
        parts = [f"{self.description}: {self.done}" + (f"/{self.total}" if self.total else "")]
        rate = (self.done - self.initial) / elapsed if elapsed > 0 else 0.0
        if rate:
            parts.append(f"{rate:.1f} {self.unit}/s")
            if self.total and self.done < self.total:
                parts.append(f"{(self.total - self.done) / rate:.0f} s left")
        if remark:
            parts.append(remark)
        print(", ".join(parts), file=sys.stderr, flush=True)
