"""The figures of a study's page."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from aligngpt.reports.figures import ACCENT, INK, STYLE, gate_heat_map
from aligngpt.study.analysis.analysing import Analysis
from aligngpt.study.analysis.contrasts import Contrast
from aligngpt.study.analysis.gates import Gate
from aligngpt.study.analysis.probes import DoseResponse
from aligngpt.study.analysis.student import Estimate
from aligngpt.study.arms import ARMS

_COLOURS = ("#3578b5", "#c9503c", "#4f9d6c", "#b5803a", "#7a5fa8", "#c06a9b", "#3b9aa8", "#8a8a2e")
_MARKERS = "osD^vP*X"
_BARS: dict[str, Any] = {"elinewidth": 1.2, "capsize": 2.5}


def forest(analysis: Analysis) -> Figure | None:
    """Every arm against the baseline at the highest share of bad captions, both outcomes; None if there is none."""
    found = against_baseline(analysis, analysis.results.noises[-1])
    rows = list(found.values())
    if not rows:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.3 * len(rows)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        names = list(found)
        bounds = analysis.bounds
        _forest(left, names, [row.log_probability.estimate for row in rows], 1, bounds.nats)
        _forest(right, names, [row.accuracy.estimate for row in rows], 100, bounds.accuracy)
        left.set_xlabel(f"log-probability − {analysis.baseline} (nats)")
        right.set_xlabel(f"accuracy − {analysis.baseline} (points)")
    return figure


def against_baseline(analysis: Analysis, noise: float) -> dict[str, Contrast]:
    """The contrasts of arms with the baseline at one share of bad captions, in the order of the arms."""
    results = analysis.results
    baseline = results.condition(analysis.baseline, noise)
    rows = {
        one.first.arm: one
        for one in (*analysis.secondary, *analysis.primary)
        if one.second == baseline and one.first == results.condition(one.first.arm, noise)
    }
    return {arm: rows[arm] for arm in ARMS if arm in rows}


def noise_curves(analysis: Analysis) -> Figure | None:
    """Each arm's difference from the baseline over the share of bad captions; None if there is only one share."""
    noises = analysis.results.noises
    by_noise = {noise: against_baseline(analysis, noise) for noise in noises}
    # An arm at a single share is no curve; the forest plot has it.
    arms = [arm for arm in ARMS if sum(arm in rows for rows in by_noise.values()) > 1]
    if not arms:
        return None
    step = 0.02 * (noises[-1] - noises[0])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        for place, arm in enumerate(arms):
            rows = {noise: found[arm] for noise, found in by_noise.items() if arm in found}
            # Arms are drawn beside each other, so that their intervals do not hide one another.
            places = np.array(list(rows)) + step * (place - (len(arms) - 1) / 2)
            _curve(left, places, [row.log_probability.estimate for row in rows.values()], 1, place, arm)
            _curve(right, places, [row.accuracy.estimate for row in rows.values()], 100, place, arm)
        left.set_ylabel(f"log-probability − {analysis.baseline} (nats)")
        right.set_ylabel(f"accuracy − {analysis.baseline} (points)")
        for axes in (left, right):
            axes.axhline(0, color=INK, linewidth=0.7)
            axes.set_xlabel("bad captions in pre-training")
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.set_xticks(noises)
            axes.grid(axis="y")
        figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def dose_response(analysis: Analysis) -> Figure | None:
    """Log-probability of right (solid) and wrong (dashed) captions at each level; None if it was not measured."""
    found = at_highest_noise(analysis)
    if not found:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for place, one in enumerate(found):
            levels = np.arange(1, len(one.right) + 1)
            _curve(axes, levels, one.right, 1, place, f"{one.condition.arm}: right")
            _curve(axes, levels, one.wrong, 1, place, f"{one.condition.arm}: wrong", dashed=True)
        axes.set(xlabel="forced level", ylabel="log-probability of a caption (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.grid(axis="y")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def at_highest_noise(analysis: Analysis) -> list[DoseResponse]:
    """The pre-trainings of the dose–response figure: those with the usual number of levels."""
    results = analysis.results
    return [
        one
        for one in analysis.dose
        if one.condition.noise == results.noises[-1] and one.condition.levels == results.levels
    ]


def detector_areas(analysis: Analysis) -> Figure | None:
    """The area under the ROC curve of each score at the highest share of bad captions; None without probe captions."""
    results = analysis.results
    rows = [
        (f"{one.condition.arm}: {one.score}", one.auc)
        for one in analysis.detectors
        if one.condition.noise == results.noises[-1] and results.is_usual(one.condition)
    ]
    if analysis.encoder is not None:
        auc = analysis.encoder.auc
        rows.append(("dual encoder's own score", Estimate(auc.value, auc.low, auc.high, 1.0, float("nan"), 1)))
    if not rows:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.8 + 0.28 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        _forest(axes, [name for name, _ in rows], [auc for _, auc in rows], 1, None)
        axes.axvline(0.5, color=INK, linewidth=0.7, linestyle=(0, (3, 2)))
        axes.set_xlabel("area under the ROC curve")
    return figure


def gates_shown(analysis: Analysis) -> list[Gate]:
    """The gates that are drawn: of the usual conditions at the highest share of bad captions."""
    results = analysis.results
    return [
        gate for gate in analysis.gates if gate.condition == results.condition(gate.condition.arm, results.noises[-1])
    ]


def gate_figure(analysis: Analysis, gate: Gate) -> Figure:
    """The heat map of a gate's weights, with the number of questions of each kind."""
    results = analysis.results
    kinds = results.questions.splits[results.questions.first].kind
    return gate_heat_map(gate.kinds, gate.weights, [kinds.count(kind) for kind in gate.kinds])


def _forest(
    axes: Axes, names: Sequence[str], estimates: Sequence[Estimate], factor: float, bound: float | None
) -> None:
    places = np.arange(len(names))
    values = factor * np.array([one.value for one in estimates])
    known = np.array([one.is_known for one in estimates])
    ends = factor * np.array([[one.low, one.high] for one in estimates])
    if bound is not None:
        axes.axvspan(-factor * bound, factor * bound, color=INK, alpha=0.15, linewidth=0)
        axes.axvline(0, color=INK, linewidth=0.7)
    axes.plot(values, places, color=ACCENT, linestyle="", marker="o", markersize=4.5)
    if known.any():
        error = np.abs(ends[known].T - values[known])
        axes.errorbar(values[known], places[known], xerr=error, color=ACCENT, linestyle="", **_BARS)
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x")


def _curve(
    axes: Axes,
    places: np.ndarray,
    estimates: Sequence[Estimate],
    factor: float,
    number: int,
    label: str,
    *,
    dashed: bool = False,
) -> None:
    values = factor * np.array([one.value for one in estimates])
    # An interval that cannot be estimated is not drawn.
    halves = factor * np.array([one.high - one.value if one.is_known else np.nan for one in estimates])
    axes.errorbar(
        places,
        values,
        yerr=halves,
        color=_COLOURS[number % len(_COLOURS)],
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=4,
        linestyle=(0, (4, 2)) if dashed else "-",
        label=label,
        **_BARS,
    )
