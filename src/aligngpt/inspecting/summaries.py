"""The numbers of an inspection from what was measured about its records."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from aligngpt.inspecting.content import Dose, DoseRow, Estimate, GateRow, LevelTable
from aligngpt.inspecting.intervals import Mean, mean_interval
from aligngpt.inspecting.measuring import Measured


def gate_by_kind(measured: Sequence[Measured]) -> list[GateRow]:
    """The gate's mean weights for each kind of task, the most frequent kind first; empty for a model without a gate."""
    rows: dict[str, list[Measured]] = {}
    for one in measured:
        if one.weights is not None:
            rows.setdefault(one.kind, []).append(one)
    found = []
    for kind, members in sorted(rows.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        pictures = [one.picture for one in members]
        table = np.array([one.weights for one in members], dtype=np.float64)
        weights: list[Estimate] = [_share(mean_interval(column, pictures)) for column in table.T]
        found.append(GateRow(kind, len(members), len(set(pictures)), weights))
    return found


def dose_response(measured: Sequence[Measured]) -> Dose:
    """The mean log-probability per token of the reference answers, under the own mix and under each forced level.

    Each record counts once, however long its answer is. Differences are between likelihoods of the same record, so
    their intervals are narrower than those of the means.
    """
    pictures = [one.picture for one in measured]
    tokens = np.array([one.tokens for one in measured], dtype=np.float64)
    own = np.array([one.own for one in measured]) / tokens
    forced = np.array([one.forced for one in measured]).T / tokens
    rows = [
        DoseRow(level, mean_interval(values, pictures), mean_interval(values - own, pictures))
        for level, values in enumerate(forced, start=1)
    ]
    return Dose(
        records=len(measured),
        pictures=len(set(pictures)),
        own=mean_interval(own, pictures),
        levels=rows,
        highest_minus_lowest=mean_interval(forced[-1] - forced[0], pictures),
    )


def level_table(levels: Tensor) -> LevelTable:
    """Norms and pairwise cosines of the level embeddings `(levels, hidden)`."""
    table = levels.detach().cpu().double()
    norms = table.norm(dim=1)
    # A row of zeros, as in a table that was never trained, has cosine 0 to all others.
    unit = table / norms.clamp(min=torch.finfo(table.dtype).tiny).unsqueeze(1)
    return LevelTable(norms.tolist(), (unit @ unit.T).clamp(-1, 1).tolist())


def _share(mean: Mean) -> Mean:
    """A mean of weights, whose interval by Student's t may reach beyond 0…1, where no weight is."""
    if mean.low is None or mean.high is None:
        return mean
    return Mean(mean.value, max(0.0, mean.low), min(1.0, mean.high))
