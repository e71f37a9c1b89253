"""The two figures that only an inspection has, in the style of all reports."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aligngpt.inspecting.content import Dose, Estimate
from aligngpt.reports.figures import ACCENT, INK, MOST_LEVEL_TICKS, STYLE

MOST_CELL_VALUES = 16
"""Largest number of levels whose cosines are also written into their cells."""

_SIGNED = LinearSegmentedColormap.from_list("signed", ["#b3432f", "#f1f0ec", "#2b62a3"])


def dose_figure(dose: Dose) -> Figure:
    """Mean log-probability per token at each forced level with its interval, and the model's own as a band."""
    levels = np.arange(1, len(dose.levels) + 1)
    found = [row.log_probability for row in dose.levels]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        value, low, high = dose.own
        if low is not None and high is not None:
            axes.axhspan(low, high, color=INK, alpha=0.15, linewidth=0)
        axes.axhline(value, color=INK, linewidth=1.1, linestyle=(0, (4, 2)), label="the model's own")
        values = [one[0] for one in found]
        axes.errorbar(levels, values, yerr=_lengths(found), color=INK, linestyle="", linewidth=0.9, capsize=2.5)
        axes.plot(levels, values, color=ACCENT, linewidth=1.7, marker="o", markersize=4.5, label="forced level")
        axes.set(xlabel="forced level", ylabel="log-probability (nats per token)")
        if len(levels) <= MOST_LEVEL_TICKS:
            axes.set_xticks(levels)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.grid(axis="y")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return figure


def cosine_heat_map(cosines: Sequence[Sequence[float]]) -> Figure:
    """The cosines `(levels, levels)` of the level embeddings, on a scale from -1 to 1."""
    table = np.asarray(cosines, dtype=np.float64)
    count = len(table)
    colours = _SIGNED((table + 1) / 2)
    side = 0.44 if count <= MOST_CELL_VALUES else 0.2
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.7 + side * count, 0.6 + side * count), layout="constrained")
        axes = figure.add_subplot()
        for row in range(count):
            for column in range(count):
                colour = colours[row, column]
                axes.barh(row, 0.96, 0.94, column - 0.48, color=colour, linewidth=0)
                if count <= MOST_CELL_VALUES:
                    dark = float(colour[:3] @ (0.2126, 0.7152, 0.0722)) < 0.55
                    said = f"{table[row, column]:z.2f}".replace("-", "−")
                    colour_of_text = "white" if dark else "#222222"
                    axes.text(column, row, said, ha="center", va="center", fontsize=7.5, color=colour_of_text)
        axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), xlabel="level", ylabel="level")
        step = 1 if count <= MOST_CELL_VALUES else -(-count // MOST_CELL_VALUES)
        ticks = range(0, count, step)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks, [str(place + 1) for place in ticks])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def _lengths(found: Sequence[Estimate]) -> np.ndarray:
    """How far each interval reaches below and above its value, `(2, values)`; 0 without an interval."""
    below = [0.0 if low is None else value - low for value, low, _ in found]
    above = [0.0 if high is None else high - value for value, _, high in found]
    return np.array([below, above])
