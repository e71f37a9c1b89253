"""The 95 % intervals of benchmark figures; the unit that is drawn is the picture."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from aligngpt.evaluation.benchmarks.frame import Item, Score
from aligngpt.reports.statistics import share_interval

DRAWS = 1000
WILSON = "Wilson with the effective sample size, clustered by picture"
BOOTSTRAP = f"percentile bootstrap of pictures, {DRAWS:,} draws"
OF_QUESTIONS = "the interval is of other questions and pictures, not of another run of the judge"

Weights = NDArray[np.float64]


def mean_score(
    values: Sequence[float],
    groups: Sequence[Hashable],
    parts: dict[str, float] | None = None,
    notes: tuple[str, ...] = (),
) -> Score:
    """The mean of values in 0…1 as a percentage with its interval.

    Args:
        values: one for each question.
        groups: the picture of each.
        parts: further figures.
        notes: see `Score`.
    """
    found = share_interval(values, groups)
    return Score(100 * found.value, 100 * found.low, 100 * found.high, WILSON, parts or {}, notes)


def by_category(values: Sequence[float], items: Sequence[Item]) -> dict[str, float]:
    """The mean of values in 0…1, one for each item, as a percentage for each category of the items."""
    found = {}
    for name in sorted({item.category for item in items} - {""}):
        mine = [value for item, value in zip(items, values, strict=True) if item.category == name]
        found[name] = 100 * sum(mine) / len(mine)
    return found


def bootstrap_interval(
    groups: Sequence[Hashable],
    figure: Callable[[Weights], float],
    strata: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> tuple[float, float] | tuple[None, None]:
    """The 2.5 % and 97.5 % quantiles of a figure over random draws of groups, with replacement.

    Args:
        groups: the group of each question.
        figure: computes the figure from how often each question was drawn, `(questions,)`.
        strata: for each question, the part of the benchmark whose groups are drawn among themselves; None for one.
        seed: random seed.

    Returns:
        The two ends; None for both if every draw gives the same figure, as with only right answers: then the draws say
        nothing about the uncertainty.
    """
    rng = np.random.default_rng(seed)
    of = strata if strata is not None else [""] * len(groups)
    number = {pair: place for place, pair in enumerate(dict.fromkeys(zip(of, groups, strict=True)))}
    place = np.array([number[pair] for pair in zip(of, groups, strict=True)])
    members: dict[Hashable, list[int]] = {}
    for (stratum, _), index in number.items():
        members.setdefault(stratum, []).append(index)
    drawn = np.zeros(len(number))
    figures = np.empty(DRAWS)
    for draw in range(DRAWS):
        for indices in members.values():
            drawn[indices] = np.bincount(rng.integers(len(indices), size=len(indices)), minlength=len(indices))
        figures[draw] = figure(drawn[place])
    low, high = np.quantile(figures, [0.025, 0.975])
    return (float(low), float(high)) if low < high else (None, None)
