"""The HTML page about scores and their levels, for checking the levels before training on them.

It is one self-contained HTML file, made from plain numbers, text and thumbnails. Captions and ids are untrusted text
and are always escaped.
"""

from dataclasses import field
from itertools import pairwise
from math import sqrt
from pathlib import Path

from markupsafe import Markup
from pydantic.dataclasses import dataclass

from aligngpt.files import atomic_write
from aligngpt.reports.figures import FEW_PAIRS, counted_histogram, level_colours, mean_scores, to_svg
from aligngpt.reports.pages import Count, Counts, Number, Numbers, Text, page_config, page_environment, require
from aligngpt.reports.thumbnails import Thumbnail

MOST_DIGITS = 9


@dataclass(frozen=True, config=page_config)
class ShownPair:
    """One pair; `level` is 1…N. If the source is not given, a pair has neither caption nor image."""

    id: Text
    level: Count
    score: Number
    caption: Text | None = None
    picture: Thumbnail | None = None
    picture_name: Text = ""


@dataclass(frozen=True, config=page_config)
class ScoreNumbers:
    """Statistics of the scores.

    Attributes:
        standard_deviation: population standard deviation.
        quantiles: scores by the share (0…1) of all scores below them.
    """

    count: Count
    mean: Number
    standard_deviation: Number
    quantiles: dict[Number, Number]


@dataclass(frozen=True, config=page_config)
class LevelRow:
    """One level: its number of pairs, whether that is too small, and averages over the pairs, if known.

    Attributes:
        caption_tokens: mean length of the captions in tokens.
        side: mean side in pixels of a square with the same area as the image.
    """

    count: Count
    thin: bool
    caption_tokens: Number | None = None
    side: Number | None = None


@dataclass(frozen=True, config=page_config)
class CopiedGroup:
    """A group of pairs with the same image or caption.

    Attributes:
        count: number of pairs, or its lower bound.
        first: the first of them in the data, or any one of them if not all pairs are counted.
        most: upper bound of the number of pairs; above `count` if the number is not known exactly.
    """

    count: Count
    first: ShownPair
    most: Count | None = None


@dataclass(frozen=True, config=page_config)
class Copies:
    """The number of pairs that share their image or caption with another pair.

    Attributes:
        groups: number of groups of two or more pairs.
        pairs: number of pairs in these groups.
        among: number of pairs examined.
        share: share (0…1) of the distinct images or captions that was counted; below 1 the numbers are estimates.
        largest: the largest groups, in descending order.
        groups_interval: 95 % interval of `groups`, if that is an estimate.
        pairs_interval: 95 % interval of `pairs`, if that is an estimate.
    """

    groups: Count
    pairs: Count
    among: Count
    share: Number = 1.0
    largest: list[CopiedGroup] = field(default_factory=list)
    groups_interval: tuple[Count, Count] | None = None
    pairs_interval: tuple[Count, Count] | None = None


@dataclass(frozen=True, config=page_config)
class ScoreByBin:
    """Scores by another quantity of the pairs, in non-empty bins.

    Attributes:
        correlation: Pearson's correlation of the score and the logarithm of the quantity; None if either is constant.
    """

    bins: list[Text]
    counts: Counts
    means: Numbers
    deviations: Numbers
    correlation: Number | None

    def __post_init__(self) -> None:
        lengths = {len(self.bins), len(self.counts), len(self.means), len(self.deviations)}
        require(len(lengths) == 1, f"expected as many counts, means and deviations as bins, found {sorted(lengths)}")


@dataclass(frozen=True, config=page_config)
class LevelsPage:
    """The content of the page; fields that are None or empty are omitted.

    Attributes:
        borders: the N-1 ascending scores between the N levels.
        rank_error: see `AlignmentLevels`.
        levels: level 1…N.
        bin_counts: number of scores in each bin of the histogram, `(bins,)`.
        bin_edges: edges of these bins, `(bins + 1,)`.
        examples: pairs of every level, drawn at random.
        lowest: the pairs with the lowest scores, in ascending order.
        same_picture: pairs with byte-identical image files.
        same_caption: pairs with the same caption.
        by_caption: scores by the length of the caption.
        by_picture: scores by the size of the image.
        facts: source, model and so on, shown under the heading.
        full: full paths of facts that are shown as short ones, by the name of the fact.
        warnings: sentences about what may make the levels useless.
    """

    title: Text
    numbers: ScoreNumbers
    borders: Numbers
    rank_error: Number
    levels: list[LevelRow]
    bin_counts: Counts
    bin_edges: Numbers
    examples: list[ShownPair] = field(default_factory=list)
    lowest: list[ShownPair] = field(default_factory=list)
    same_picture: Copies | None = None
    same_caption: Copies | None = None
    by_caption: ScoreByBin | None = None
    by_picture: ScoreByBin | None = None
    facts: dict[Text, Text] = field(default_factory=dict)
    full: dict[Text, Text] = field(default_factory=dict)
    warnings: list[Text] = field(default_factory=list)

    def __post_init__(self) -> None:
        levels, found = len(self.borders) + 1, len(self.levels)
        require(found == levels, f"expected {levels} levels for {levels - 1} borders, found {found}")
        bins, edges = len(self.bin_counts), len(self.bin_edges)
        require(edges == bins + 1 or not bins, f"expected {bins + 1} edges of {bins} bins, found {edges}")
        for pair in (*self.examples, *self.lowest):
            require(1 <= pair.level <= levels, f"expected a level in 1…{levels}, found {pair.level}")


def build_levels_page(page: LevelsPage, out: str | Path) -> None:
    """Write the page as one self-contained HTML file that makes no requests.

    Args:
        page: the content.
        out: the HTML file; written atomically, missing folders are created.

    Raises:
        OSError: `out` cannot be written.
    """
    environment = page_environment()
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    digits = _digits(page)
    environment.filters["score"] = lambda score: f"{score:.{digits}f}".replace("-", "−")
    html = environment.get_template("levels_page.html.jinja").render(
        page=page, figures=_figures(page), level_colours=level_colours(len(page.levels)), few=FEW_PAIRS
    )
    with atomic_write(out) as file:
        file.write(html)


def _digits(page: LevelsPage) -> int:
    """The number of decimals that makes neighbouring borders distinguishable."""
    gap = min((high - low for low, high in pairwise(page.borders)), default=1.0)
    digits = 3
    while digits < MOST_DIGITS and gap < 2 * 10.0**-digits:
        digits += 1
    return digits


def _figures(page: LevelsPage) -> dict[str, Markup]:
    drawn = {
        "histogram": to_svg(
            counted_histogram(page.bin_counts, page.bin_edges, page.borders),
            "histogram",
            f"Histogram of {page.numbers.count:,} scores, cut into {len(page.levels)} levels.",
        )
    }
    for name, what, binned in (
        ("by_caption", "caption length in tokens", page.by_caption),
        ("by_picture", "side of the image in pixels", page.by_picture),
    ):
        if binned is not None:
            told = "; ".join(f"{label}: {mean:.3f}" for label, mean in zip(binned.bins, binned.means, strict=True))
            drawn[name] = to_svg(
                mean_scores(binned.bins, binned.counts, binned.means, _half_intervals(binned), what),
                name,
                f"Mean score by {what}. {told}.",
            )
    return {name: Markup(svg) for name, svg in drawn.items()}


def _half_intervals(binned: ScoreByBin) -> list[float]:
    """Half the 95 % interval of each mean: the figure compares means, not the spread of single scores."""
    return [1.96 * spread / sqrt(count) for spread, count in zip(binned.deviations, binned.counts, strict=True)]
