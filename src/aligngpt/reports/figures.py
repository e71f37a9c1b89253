"""Figures of a report, from plain numbers, as SVG or PNG.

Figures use neither pyplot nor a display. Axes and text are drawn in a mid-grey that is readable on light and dark
backgrounds; `to_svg` replaces it with the colour of the surrounding text.
"""

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Browsers have glyphs that matplotlib's font lacks. Set once: warning filters are per process, not per thread.
warnings.filterwarnings("ignore", message="Glyph .* missing from font")

INK = "#7f7f80"
ACCENT = "#3578b5"
LONGEST_LABEL = 28
MOST_LEVEL_TICKS = 16
# Number of letters that fit side by side under an axis.
LETTERS_UNDER_AXIS = 40
FEW_PAIRS = 30
# CSS pixels of the page per point (1/72 inch) of a figure.
PIXELS_PER_POINT = 1.36

_LEVELS = LinearSegmentedColormap.from_list("levels", ["#c9503c", "#e29a4f", "#a9b18f", "#4f9d9c", "#3a6fb0"])
_WEIGHTS = LinearSegmentedColormap.from_list("weights", ["#e9eff5", "#8fb4d6", "#3578b5", "#1c4674"])
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    # Labels are untrusted text: a "$" in one is a dollar sign, not a formula.
    "text.parse_math": False,
}
_SIZE = (4.6, 2.7)


class Line(NamedTuple):
    """A curve: ascending positions on the x-axis, and the value at each."""

    places: Sequence[float]
    values: Sequence[float] | np.ndarray


def level_colours(num_levels: int) -> list[str]:
    """One `#rrggbb` colour per level, from level 1 (the worst aligned) to level N."""
    positions = [0.5] if num_levels == 1 else np.linspace(0, 1, num_levels)
    return [to_hex(_LEVELS(position)) for position in positions]


def score_histogram(scores: Sequence[float], borders: Sequence[float]) -> Figure:
    """Draw the distribution of the similarity scores and the borders of the levels.

    Args:
        scores: one score per pair; NaN and infinite ones are ignored.
        borders: the N-1 ascending scores between the N levels.
    """
    values = np.asarray(scores, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return counted_histogram([], [], borders)
    edges = np.histogram_bin_edges(values, bins=int(np.clip(np.sqrt(len(values)), 8, 56)))
    counts, _ = np.histogram(values, edges)
    return counted_histogram(counts.tolist(), edges.tolist(), borders)


def counted_histogram(counts: Sequence[int], edges: Sequence[float], borders: Sequence[float]) -> Figure:
    """Draw a precomputed histogram and the borders of the levels.

    Args:
        counts: number of scores in each bin, `(bins,)`; may be empty.
        edges: ascending edges of the bins, `(bins + 1,)`.
        borders: the N-1 ascending scores between the N levels.
    """
    heights, ends = np.asarray(counts), np.asarray(edges, dtype=np.float64)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        if len(heights):
            limits = [-np.inf, *borders, np.inf]
            for level, colour in enumerate(level_colours(len(borders) + 1)):
                # A bin that contains a border is drawn in two parts, one per level.
                lefts, rights = np.maximum(ends[:-1], limits[level]), np.minimum(ends[1:], limits[level + 1])
                drawn = (heights > 0) & (lefts < rights)
                widths = rights[drawn] - lefts[drawn]
                axes.bar(lefts[drawn], heights[drawn], widths, align="edge", color=colour, linewidth=0)
            axes.set_ylim(0, heights.max() * 1.06)
        for border in borders:
            axes.axvline(border, color=INK, linewidth=0.7, linestyle=(0, (3, 2)))
        axes.set(xlabel="similarity of image and caption", ylabel="pairs")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y")
    return figure


def mean_scores(
    bins: Sequence[str], counts: Sequence[int], means: Sequence[float], deviations: Sequence[float], what: str
) -> Figure:
    """Draw the mean score in each bin of another quantity, with error bars.

    The mean of fewer than `FEW_PAIRS` pairs is drawn hollow.

    Args:
        bins: names of the non-empty bins, in order.
        counts: number of pairs in each bin.
        means: mean score in each bin.
        deviations: half the length of the error bar of each bin.
        what: name of the binned quantity.
    """
    places = np.arange(len(bins))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.errorbar(places, means, yerr=deviations, color=INK, linestyle="", linewidth=0.9, capsize=2.5, alpha=0.7)
        axes.plot(places, means, color=ACCENT, linewidth=1.7)
        for place, count, mean in zip(places, counts, means, strict=True):
            axes.plot(place, mean, color=ACCENT, marker="o", markersize=4.5, fillstyle=_filled(count))
        axes.set_xticks(places, list(bins))
        if sum(map(len, bins)) > LETTERS_UNDER_AXIS:
            axes.tick_params(axis="x", labelrotation=35)
        axes.set(xlabel=what, ylabel="mean score", xlim=(-0.5, max(len(bins), 1) - 0.5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y")
    return figure


def wrong_share_bars(shares: Sequence[float], intervals: Sequence[tuple[float, float]] | None = None) -> Figure:
    """Draw the share (0…1) of captions known to be wrong in each level, level 1 first.

    A NaN leaves a gap. `intervals` are the ends of each share's 95 % interval, drawn as whiskers.
    """
    levels = np.arange(1, len(shares) + 1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.bar(levels, shares, 0.72, color=level_colours(len(shares)))
        heights = [share for share in shares if np.isfinite(share)]
        if intervals is not None:
            known = [place for place, share in enumerate(shares) if np.isfinite(share)]
            down = [shares[place] - intervals[place][0] for place in known]
            up = [intervals[place][1] - shares[place] for place in known]
            axes.errorbar(levels[known], heights, yerr=[down, up], color=INK, linestyle="", linewidth=0.9, capsize=2.5)
            heights += [intervals[place][1] for place in known]
        axes.set(xlabel="level", ylabel="wrong captions", ylim=(0, min(1.05, max([0.05, *heights]) * 1.1)))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if len(shares) <= MOST_LEVEL_TICKS:
            axes.set_xticks(levels)
        axes.grid(axis="y")
    return figure


def loss_curve(steps: Sequence[int], losses: Sequence[float], reference: Line | None = None) -> Figure:
    """Draw a training loss: every logged value, and the running mean over about a thirtieth of the run.

    Args:
        steps: optimiser steps, ascending.
        losses: mean loss per token in nats at each step; a NaN leaves a gap.
        reference: steps and losses of a reference run, drawn as a dashed line behind.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        window, label = len(losses) // 30, "this run"
        if reference is not None:
            window_behind = len(reference.values) // 30
            smooth = _running_mean(reference.values, window_behind) if window_behind > 1 else reference.values
            _draw_behind(axes, Line(reference.places, smooth))
        if window > 1:
            axes.plot(steps, losses, color=ACCENT, alpha=0.35, linewidth=0.8)
            axes.plot(steps, _running_mean(losses, window), color=ACCENT, linewidth=1.7, label=label)
        else:
            marker = "o" if len(losses) < 3 else None
            axes.plot(steps, losses, color=ACCENT, linewidth=1.7, marker=marker, label=label)
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="y")
        if reference is not None:
            axes.legend(frameon=False, loc="upper right")
    return figure


def accuracy_curve(minutes: Sequence[float], accuracies: Sequence[float], reference: Line | None = None) -> Figure:
    """Draw the share (0…1) of right answers over minutes of training.

    `reference` has the minutes and shares of a reference run, drawn as a dashed line behind.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        if reference is not None:
            _draw_behind(axes, reference)
        axes.plot(minutes, accuracies, color=ACCENT, linewidth=1.7, marker="o", markersize=3.5, label="this run")
        axes.set(xlabel="minutes of training", ylabel="right answers", ylim=(0, 1.02))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(axis="y")
        if reference is not None:
            axes.legend(frameon=False, loc="lower right")
    return figure


def _draw_behind(axes: Axes, line: Line) -> None:
    """Draw a curve grey and dashed, so that it differs from the run's own curve not only by colour."""
    axes.plot(line.places, line.values, color=INK, alpha=0.75, linewidth=1.1, linestyle=(0, (4, 2)), label="reference")


def gate_heat_map(kinds: Sequence[str], weights: Sequence[Sequence[float]], counts: Sequence[int]) -> Figure:
    """Draw the gate's mean weight of each level for each kind of question.

    Args:
        kinds: names of the rows.
        weights: `(kinds, N-1)`, each row adding up to 1; NaN if there is nothing to average.
        counts: number of questions averaged in each row.
    """
    table = np.asarray(weights, dtype=np.float64)
    known = np.isfinite(table)
    rows, columns = table.shape
    labels = [f"{_short(kind)} ({count:,})" for kind, count in zip(kinds, counts, strict=True)]
    label_width = 0.5 + 0.068 * max(len(label) for label in labels)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(label_width + 0.5 * columns, 0.62 + 0.32 * rows), layout="constrained")
        axes = figure.add_subplot()
        shown = np.where(known, table, 0.0)
        colours = _WEIGHTS(shown / (shown.max() or 1.0))
        # Rectangles, not an image: they stay sharp in an SVG and have no borders.
        for row in range(rows):
            for column in range(columns):
                colour = colours[row, column]
                axes.barh(row, 0.96, 0.92, column - 0.48, color=colour, linewidth=0)
                dark = float(colour[:3] @ (0.2126, 0.7152, 0.0722)) < 0.55
                value = f"{table[row, column]:.2f}" if known[row, column] else "–"
                axes.text(
                    column,
                    row,
                    value,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "#222222",
                )
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xlabel="level")
        axes.set_xticks(range(columns), [str(level) for level in range(1, columns + 1)])
        axes.set_yticks(range(rows), labels)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Render a figure as an `<svg>` element for an HTML page.

    Args:
        figure: the figure.
        name: prefix of every id inside, so that several figures can share one page.
        description: text alternative for screen readers.
    """
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(_render(figure))
    for metadata in root.findall("{*}metadata"):
        root.remove(metadata)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                value = f"{name}-{value}"
            elif key.endswith("href") and value.startswith("#"):
                value = f"#{name}-{value[1:]}"
            elif key == "style":
                value = value.replace(INK, "currentColor")
            element.set(key, re.sub(r"url\(#", f"url(#{name}-", value))
    width, height = (float(length) for length in root.attrib["viewBox"].split()[2:])
    root.set("width", f"{width * PIXELS_PER_POINT:.0f}")
    root.set("height", f"{height * PIXELS_PER_POINT:.0f}")
    root.set("role", "img")
    root.set("aria-label", description)
    return ElementTree.tostring(root, encoding="unicode")


def _render(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": "aligngpt"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _filled(count: int) -> Literal["none", "full"]:
    return "none" if count < FEW_PAIRS else "full"


def _running_mean(values: Sequence[float] | np.ndarray, window: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array)
    ones = np.ones(window)
    count = np.convolve(finite, ones, mode="same")
    total = np.convolve(np.where(finite, array, 0.0), ones, mode="same")
    return np.divide(total, count, out=np.full(len(array), np.nan), where=count > 0)


def _short(label: str) -> str:
    label = " ".join(label.split())
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
