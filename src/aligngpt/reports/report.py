"""The report of a run: one self-contained HTML page, made from plain numbers, text and image paths.

Captions, questions and answers are untrusted text and are always escaped; an image that cannot be opened does not fail
the report.
"""

import math
from collections.abc import Iterable
from dataclasses import field
from pathlib import Path

from markupsafe import Markup
from pydantic.dataclasses import dataclass

from aligngpt.files import atomic_write
from aligngpt.reports.figures import (
    accuracy_curve,
    gate_heat_map,
    level_colours,
    loss_curve,
    score_histogram,
    to_svg,
    wrong_share_bars,
)
from aligngpt.reports.pages import Text, page_config, page_environment
from aligngpt.reports.sections import (
    AccuracyCurve,
    AccuracyRow,
    AnswerExample,
    DifferenceRow,
    GateSection,
    LevelsSection,
    LossCurve,
    TimingRow,
)
from aligngpt.reports.thumbnails import thumbnail_in


@dataclass(frozen=True, config=page_config)
class ReportData:
    """The content of a report; every section is optional.

    Attributes:
        title: heading of the page.
        accuracies: the headline result; rows are shown in the given order.
        differences: the first row of `accuracies` compared with baselines.
        growth: validation accuracy during training.
        warm_start: a sentence on the result of the projector's warm start, if there was one.
        facts: model, data, date, machine and so on, shown under the heading.
        notes: a sentence on everything that is not on the page.
    """

    title: Text = "AlignGPT run"
    accuracies: list[AccuracyRow] = field(default_factory=list)
    levels: LevelsSection | None = None
    curves: list[LossCurve] = field(default_factory=list)
    growth: AccuracyCurve | None = None
    warm_start: Text | None = None
    gate: GateSection | None = None
    answers: list[AnswerExample] = field(default_factory=list)
    timings: list[TimingRow] = field(default_factory=list)
    facts: dict[Text, Text] = field(default_factory=dict)
    differences: list[DifferenceRow] = field(default_factory=list)
    notes: list[Text] = field(default_factory=list)


def build_report(report: ReportData, out: str | Path, *, image_root: str | Path = ".") -> None:
    """Write the report as one self-contained HTML file that makes no requests.

    Args:
        report: the content.
        out: the HTML file; written atomically, missing folders are created.
        image_root: folder that relative image paths start from, and the only folder that images are read from, except
            those of examples with an `image_root` of their own. An image outside it, or one that cannot be opened, is
            shown as an empty frame with the reason.

    Raises:
        OSError: `out` cannot be written.
    """
    environment = page_environment()
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}" if math.isfinite(share) else "–"
    environment.filters["points"] = lambda share: f"{100 * share:+.1f}".replace("-", "−")
    environment.filters["duration"] = _duration
    root = Path(image_root)
    page = environment.get_template("report.html.jinja").render(
        report=report,
        figures=_figures(report),
        level_colours=level_colours(len(report.levels.borders) + 1) if report.levels else [],
        best_baseline=max(
            (row for row in report.accuracies if row.baseline), key=lambda row: row.accuracy, default=None
        ),
        thumbnail=lambda example: thumbnail_in(Path(example.image_root or root), example.image_path),
    )
    with atomic_write(out) as file:
        file.write(page)


def _figures(report: ReportData) -> dict[str, Markup]:
    drawn = {}
    if report.levels is not None:
        levels = report.levels
        drawn["histogram"] = to_svg(
            score_histogram(levels.scores, levels.borders),
            "histogram",
            f"Histogram of {len(levels.scores):,} scores, cut into {len(levels.borders) + 1} levels.",
        )
        if levels.wrong_share is not None:
            shares = "; ".join(
                f"level {level}: {share:.0%}" if math.isfinite(share) else f"level {level}: empty"
                for level, share in enumerate(levels.wrong_share, 1)
            )
            drawn["wrong_share"] = to_svg(
                wrong_share_bars(levels.wrong_share, levels.wrong_intervals),
                "wrong",
                f"Share of wrong captions. {shares}.",
            )
    for index, curve in enumerate(report.curves):
        behind = None if curve.reference is None else curve.reference.line()
        course = _course(curve.losses, " It goes from {:.2f} to {:.2f}.")
        compared = _course(behind.values, " The reference goes from {:.2f} to {:.2f}.") if behind else ""
        drawn[f"curve{index}"] = to_svg(
            loss_curve(curve.steps, curve.losses, behind),
            f"curve{index}",
            f"Training loss of {curve.name}.{course}{compared}",
        )
    if report.growth is not None:
        growth = report.growth
        behind = None if growth.reference is None else growth.reference.line()
        course = _course(growth.accuracies, " From {:.0%} to {:.0%}.")
        compared = _course(behind.values, " The reference: from {:.0%} to {:.0%}.") if behind else ""
        drawn["growth"] = to_svg(
            accuracy_curve(growth.minutes, growth.accuracies, behind),
            "growth",
            f"Right answers of {growth.name}.{course}{compared}",
        )
    if report.gate is not None:
        gate = report.gate
        strongest = "; ".join(
            f"{kind}: level {row.index(max(row)) + 1} ({max(row):.2f})"
            for kind, row in zip(gate.kinds, gate.weights, strict=True)
        )
        drawn["gate"] = to_svg(
            gate_heat_map(gate.kinds, gate.weights, gate.counts),
            "gate",
            f"Heat map of the gate's mean weights. Strongest level by kind of question: {strongest}.",
        )
    return {name: Markup(svg) for name, svg in drawn.items()}


def _course(values: Iterable[float], words: str) -> str:
    """Format the first and last finite value of a curve with `words`; empty if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return words.format(finite[0], finite[-1]) if finite else ""


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
