"""The training curves of a run, read from the logs of its stages, and those of a reference run.

A stage logs JSON lines (`metrics.jsonl`) with `step`, `seconds` and `loss`, or `validation_accuracy`. A curve file has
such lines of several stages, each with its `stage`; a line with `about` describes the run.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligngpt.errors import AlignGPTError
from aligngpt.reports.sections import AccuracyCurve, LossCurve, Reference

METRICS_FILE = "metrics.jsonl"
PLACES = {"loss": "step", "validation_accuracy": "seconds"}
"""For each logged value, the field of the same line that gives its position on the x-axis."""

Lines = Sequence[dict[str, Any]]


class CurveError(AlignGPTError):
    """The reference to compare with is neither a run folder nor a curve file."""


@dataclass(frozen=True)
class ReferenceRun:
    """The logged lines of a reference run, by stage, and a description of the run."""

    about: str
    stages: Mapping[str, Lines]

    def losses(self, stage: str) -> Reference | None:
        """The loss of a stage at each logged step; None if none was logged."""
        lines = [line for line in self.stages.get(stage, ()) if "loss" in line]
        if not lines:
            return None
        return Reference(self.about, [line["step"] for line in lines], [line["loss"] for line in lines])

    def accuracies(self, stage: str) -> Reference | None:
        """The validation accuracy of a stage by minutes of training; None if none was logged."""
        lines = [line for line in self.stages.get(stage, ()) if "validation_accuracy" in line]
        if not lines:
            return None
        minutes = [line["seconds"] / 60 for line in lines]
        return Reference(self.about, minutes, [line["validation_accuracy"] for line in lines])


def logged(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a line cut short by an interruption is skipped."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def read_reference(source: Path) -> ReferenceRun:
    """Read the run to compare with.

    Args:
        source: a run folder or a curve file.

    Raises:
        CurveError: it is neither, or one of its lines lacks a number that the curves need.
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
            f"the reference {source} has no training log; give a run folder with pretrain/{METRICS_FILE} or "
            f"instruct/{METRICS_FILE} in it, or a file of such lines, each with its stage"
        )
    for stage, lines in curved.items():
        for line in lines:
            _check(line, f"the reference {source}: a line of {stage}")
    return ReferenceRun(about, curved)


def _check(line: dict[str, Any], what: str) -> None:
    for value, place in PLACES.items():
        for name in (value, place) if value in line else ():
            if not isinstance(line.get(name), int | float):
                raise CurveError(f"{what} has no numeric field {name}: {line!r:.80}; write the curves again")


def loss_curve_of(stage: str, name: str, lines: Lines, reference: ReferenceRun | None = None) -> LossCurve:
    """The loss curve of a stage; `name` is its name on the page."""
    lines = [line for line in lines if "loss" in line]
    behind = None if reference is None else reference.losses(stage)
    return LossCurve(name, [line["step"] for line in lines], [line["loss"] for line in lines], behind)


def accuracy_curve_of(
    stage: str, name: str, lines: Lines, reference: ReferenceRun | None = None
) -> AccuracyCurve | None:
    """The validation accuracy curve of a stage; None if none was logged."""
    lines = [line for line in lines if "validation_accuracy" in line]
    if not lines:
        return None
    behind = None if reference is None else reference.accuracies(stage)
    minutes = [line["seconds"] / 60 for line in lines]
    return AccuracyCurve(name, minutes, [line["validation_accuracy"] for line in lines], behind)
