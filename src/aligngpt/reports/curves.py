"""The curves of a run out of what its stages logged, and those of a run to compare it with.

A stage logs JSON lines (`metrics.jsonl`) with `step`, `seconds` and `loss`, or `validation_accuracy`. A curve file has
such lines of several stages, each with its `stage`; a line with `about` says whose run they are of.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligngpt.errors import AlignGPTError
from aligngpt.reports.report import AccuracyCurve, LossCurve, Reference

METRICS_FILE = "metrics.jsonl"
PLACES = {"loss": "step", "validation_accuracy": "seconds"}
"""What a line that holds the one has to say of its place."""

Lines = Sequence[dict[str, Any]]


class CurveError(AlignGPTError):
    """There is no run, and no file of curves, to compare with."""


@dataclass(frozen=True)
class ReferenceRun:
    """What a run to compare with logged, by stage, and whose run it is."""

    about: str
    stages: Mapping[str, Lines]

    def losses(self, stage: str) -> Reference | None:
        """The loss of a stage at each logged step; None where none was logged."""
        lines = [line for line in self.stages.get(stage, ()) if "loss" in line]
        if not lines:
            return None
        return Reference(self.about, [line["step"] for line in lines], [line["loss"] for line in lines])

    def accuracies(self, stage: str) -> Reference | None:
        """The share of validation questions answered right after so many minutes; None where none was logged."""
        lines = [line for line in self.stages.get(stage, ()) if "validation_accuracy" in line]
        if not lines:
            return None
        minutes = [line["seconds"] / 60 for line in lines]
        return Reference(self.about, minutes, [line["validation_accuracy"] for line in lines])


def logged(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of metrics; one that a kill cut short is passed over."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def read_reference(source: Path) -> ReferenceRun:
    """The run to compare with.

    Args:
        source: the folder of a run, or a file of curves.

    Raises:
        CurveError: it is neither, or a line of it lacks what a curve needs.
    """
    stages: dict[str, list[dict[str, Any]]] = defaultdict(list)
    about = source.stem
    if source.is_dir():
        stages |= {path.parent.name: logged(path) for path in sorted(source.glob(f"*/{METRICS_FILE}"))}
        about = f"the run {source.resolve().name}"
    else:
        try:
            lines = logged(source)
        except (OSError, UnicodeDecodeError) as error:
            raise CurveError(f"the reference {source} cannot be read: {error}") from error
        for line in lines:
            about = str(line.get("about", about))
            if "stage" in line:
                stages[str(line["stage"])].append(line)
    curved = {stage: [line for line in lines if PLACES.keys() & line.keys()] for stage, lines in stages.items()}
    if not any(curved.values()):
        raise CurveError(
            f"the reference {source} logs no training; give the folder of a run, with pretrain/{METRICS_FILE} or "
            f"instruct/{METRICS_FILE} in it, or a file of such lines that have their stage"
        )
    for stage, lines in curved.items():
        for line in lines:
            _check(line, f"the reference {source}: a line of {stage}")
    return ReferenceRun(about, curved)


def _check(line: dict[str, Any], what: str) -> None:
    for value, place in PLACES.items():
        for name in (value, place) if value in line else ():
            if not isinstance(line.get(name), int | float):
                raise CurveError(f"{what} has no number {name}: {line!r:.80}; write the curves again")


def loss_curve_of(stage: str, name: str, lines: Lines, reference: ReferenceRun | None = None) -> LossCurve:
    """The loss of a stage; `name` is what the page calls it."""
    lines = [line for line in lines if "loss" in line]
    behind = None if reference is None else reference.losses(stage)
    return LossCurve(name, [line["step"] for line in lines], [line["loss"] for line in lines], behind)


def accuracy_curve_of(
    stage: str, name: str, lines: Lines, reference: ReferenceRun | None = None
) -> AccuracyCurve | None:
    """How many validation questions were answered right as a stage trained; None where it asked none."""
    lines = [line for line in lines if "validation_accuracy" in line]
    if not lines:
        return None
    behind = None if reference is None else reference.accuracies(stage)
    minutes = [line["seconds"] / 60 for line in lines]
    return AccuracyCurve(name, minutes, [line["validation_accuracy"] for line in lines], behind)
