"""Whether the gate of the `adaptive` arm treats kinds of questions differently."""

from dataclasses import dataclass

import numpy as np

from aligngpt.study.analysis.loading import Condition, Results
from aligngpt.study.analysis.student import Estimate, estimate
from aligngpt.study.pairs import StudyError


@dataclass(frozen=True)
class Gate:
    """The gate's weights by kind of question.

    Attributes:
        condition: of the runs.
        kinds: names of the rows.
        weights: mean over seeds of the mean weight, `(kinds, N - 1)`.
        spread: the largest difference of the mean weight of one level between two kinds of question. It cannot be
            negative, so its interval is for its size and not a test.
    """

    condition: Condition
    kinds: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]
    spread: Estimate


def gates(results: Results) -> list[Gate]:
    """Of every condition whose runs have a gate.

    Raises:
        StudyError: runs of one condition have different kinds of questions or numbers of weights.
    """
    found = []
    for condition, of_seed in results.runs.items():
        runs = [run for run in of_seed.values() if run.gate]
        if not runs:
            continue
        kinds = tuple(sorted(runs[0].gate))
        shape = runs[0].gate[kinds[0]].shape
        for run in runs:
            if tuple(sorted(run.gate)) != kinds or run.gate[kinds[0]].shape != shape:
                raise StudyError(f"the gates of {runs[0].name} and {run.name} have other kinds of questions or levels")
        tables = np.stack([np.stack([run.gate[kind] for kind in kinds]) for run in runs])
        spread = np.ptp(tables, axis=1).max(axis=1)
        weights = tuple(tuple(row) for row in tables.mean(axis=0).tolist())
        found.append(Gate(condition, kinds, weights, estimate(spread)))
    return found
