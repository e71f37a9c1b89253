"""A run of several parts: its time, its results on disk after every figure, and what failed in it."""

import json
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from aligngpt.files import atomic_write
from aligngpt.model.packing.pieces import Way

DONE, SKIPPED, FAILED, UNFINISHED = "done", "skipped", "failed", "unfinished"
KERNELS: tuple[Way, ...] = ("varlen", "loop", "flex")
"""Ways of attention to measure, in order: `flex` compiles for up to a minute, so it must not hold up the others."""


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        name: key of its results.
        work: measures and adds rows to the run; what it raises is recorded, and the next part runs.
        needs: seconds that must be left for it to begin.
        share: of all seconds; beyond it, the part begins no further measurement.
    """

    name: str
    work: Callable[["Run"], None]
    needs: float
    share: float


@dataclass
class Run:
    """Device, sizes, time and results that the parts share.

    Attributes:
        device: what is measured.
        rehearse: tiny sizes, to try the program itself.
        seconds: time for all parts; checked between measurements, none is interrupted.
        out: JSON file, replaced atomically after each figure.
        results: what the file holds.
        peak: FLOP/s of the measured matrix product, bandwidth: bytes/s of the measured copy; 0 before it is measured.
        refused: ways of attention that were wrong or failed, and why; they are not trained with.
        tried: ways of attention that were found exact.
    """

    device: torch.device
    rehearse: bool
    seconds: float
    out: Path
    results: dict[str, Any] = field(default_factory=lambda: {"parts": {}})
    peak: float = 0.0
    bandwidth: float = 0.0
    refused: dict[Way, str] = field(default_factory=dict)
    tried: set[Way] = field(default_factory=set)
    began: float = field(default_factory=time.perf_counter)
    _current: str = ""
    _part_ends: float = math.inf

    def left(self, needed: float = 0.0) -> bool:
        """Whether a measurement of `needed` seconds would end within the time of the part and of the run."""
        ends = time.perf_counter() + needed
        return ends <= self._part_ends and ends - self.began <= self.seconds

    def wait(self) -> float:
        """The time in seconds, once the device has finished its queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def add(self, **figures: Any) -> None:
        """Add a row to the current part, print it and save all."""
        self.results["parts"][self._current]["rows"].append({name: _writable(value) for name, value in figures.items()})
        self.save()
        print(
            f"  {self._current}: "
            + " ".join(f"{name}={shown(value)}" for name, value in figures.items() if value is not None),
            flush=True,
        )

    def remark(self, text: str) -> None:
        """Add a sentence to the current part: what was left out and why."""
        self.results["parts"][self._current]["remarks"].append(text)
        self.save()
        print(f"  {self._current}: {text}", flush=True)

    def fail(self, text: str) -> None:
        """Add a sentence to the current part, which counts as failed and goes on."""
        self.results["parts"][self._current]["status"] = FAILED
        self.remark(text)

    def attempt(self, what: str, work: Callable[[], None]) -> bool:
        """Run one of several measurements of a part; what it raises becomes a remark, and the part counts as failed."""
        try:
            work()
        except Exception as error:
            self.results["parts"][self._current].setdefault("tracebacks", []).append(traceback.format_exc())
            self.fail(f"{what} failed: {reason(error)}")
            return False
        return True

    def refuse(self, way: Way, why: str) -> None:
        """Leave a way of attention out of what follows; the part counts as failed."""
        self.refused.setdefault(way, why)
        self.fail(f"{way} is not trained with: {why}")

    def save(self) -> None:
        """Replace the file of results."""
        with atomic_write(self.out) as file:
            json.dump(self.results | {"seconds": time.perf_counter() - self.began}, file, indent=1, allow_nan=False)

    def perform(self, parts: Sequence[Part]) -> bool:
        """Run parts in order; return whether none of them failed."""
        for part in parts:
            record: dict[str, Any] = {"status": UNFINISHED, "rows": [], "remarks": []}
            self.results["parts"][part.name] = record
            self._current, self._part_ends = part.name, math.inf
            started = time.perf_counter()
            if not self.left(part.needs):
                record["status"] = SKIPPED
                self.remark(f"skipped: less than {part.needs:.0f} s are left")
                continue
            print(f"{part.name} (at {started - self.began:.0f} s)", flush=True)
            if not self.rehearse:
                self._part_ends = started + part.share * self.seconds
            self.save()
            try:
                part.work(self)
            except Exception as error:
                record["status"] = FAILED
                record["traceback"] = traceback.format_exc()
                self.remark(f"failed: {reason(error)}")
            if record["status"] == UNFINISHED:
                record["status"] = DONE
            record["seconds"] = time.perf_counter() - started
            self.save()
        return all(part["status"] != FAILED for part in self.results["parts"].values())


def reason(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no text').splitlines()[0][:300]}"


def shown(value: Any) -> str:
    """A figure as it is printed."""
    if isinstance(value, list):
        return "[" + ", ".join(shown(one) for one in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _writable(value: Any) -> Any:
    """What JSON can hold: it has no NaN and no infinity, which must not be lost either."""
    if isinstance(value, list):
        return [_writable(one) for one in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def seconds_of(run: Run, work: Callable[[], object], *, repeats: int = 5, warm: int = 2) -> float:
    """Median seconds of some work on the device, after `warm` runs that are not timed."""
    for _ in range(warm):
        work()
    taken = []
    for _ in range(repeats):
        started = run.wait()
        work()
        taken.append(run.wait() - started)
    return sorted(taken)[len(taken) // 2]


def free(run: Run) -> None:
    """Give back the device's memory that nothing holds any more, and begin to watch its peak anew."""
    import gc

    gc.collect()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(run.device)


def peak_gib(run: Run) -> float | None:
    """Peak memory on the GPU in GiB since `free`; None on a CPU."""
    return torch.cuda.max_memory_allocated(run.device) / 2**30 if run.device.type == "cuda" else None
