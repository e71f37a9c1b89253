"""The page about scores that were cut into levels, for a person to look at before they train on them.

It is one HTML file that stands alone, from plain numbers, texts and thumbnails. Captions and ids are other people's
text: nothing in them is ever read as HTML.
"""

from dataclasses import field
from itertools import pairwise
from math import sqrt
from pathlib import Path

from markupsafe import Markup
from pydantic.dataclasses import dataclass

from aligngpt.files import atomic_write
from aligngpt.reports.figures import FEW_PAIRS, Thumbnail, counted_histogram, level_colours, mean_scores, to_svg
from aligngpt.reports.pages import Count, Counts, Number, Numbers, Text, page_config, page_environment, require

MOST_DIGITS = 9


@dataclass(frozen=True, config=page_config)
class ShownPair:
    """One pair; `level` is 1…N. Without its source a pair has neither caption nor picture."""

    id: Text
    level: Count
    score: Number
    caption: Text | None = None
    picture: Thumbnail | None = None
    picture_name: Text = ""


@dataclass(frozen=True, config=page_config)
class ScoreNumbers:
    """What the scores are like.

    Attributes:
        standard_deviation: the population's.
        quantiles: scores by the share (0…1) of all scores that lie below.
    """

    count: Count
    mean: Number
    standard_deviation: Number
    quantiles: dict[Number, Number]


@dataclass(frozen=True, config=page_config)
class LevelRow:
    """One level: how many pairs it has, whether that is too few, and what they are like on average, where known.

    Attributes:
        side: mean side in pixels of a square as large as the picture.
    """

    count: Count
    thin: bool
    caption_tokens: Number | None = None
    side: Number | None = None


@dataclass(frozen=True, config=page_config)
class CopiedGroup:
    """So many pairs have the same picture, or the same caption; `first` is the first of them in the data, or one of
    them where not all is counted. `most` is above `count` where their number is only known to lie between the two."""

    count: Count
    first: ShownPair
    most: Count | None = None


@dataclass(frozen=True, config=page_config)
class Copies:
    """How many pairs share something with another pair.

    Attributes:
        groups: groups of two pairs or more.
        pairs: the pairs in them.
        among: pairs that were looked at.
        share: share (0…1) of what may be equal that was counted; below 1 the numbers are estimates.
        largest: the largest groups, the largest first.
        groups_interval: of `groups`, at 95 %, where that is an estimate.
        pairs_interval: of `pairs`, likewise.
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
    """The scores of pairs by something else about them, in bins that each hold pairs.

    Attributes:
        correlation: Pearson's, of the score and the logarithm of the other; None where either is the same everywhere.
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
    """All the page shows; what is None or empty is left out.

    Attributes:
        borders: the N-1 ascending scores between the N levels.
        rank_error: how far the share of scores below a border may be from the one meant, 0…1; 0 when exact.
        levels: level 1…N.
        bin_counts: scores in each bin of the histogram, `(bins,)`.
        bin_edges: ends of these bins, `(bins + 1,)`.
        examples: pairs of every level, drawn at random.
        lowest: the pairs with the lowest scores, the lowest first.
        same_picture: pairs whose pictures are the same file, byte by byte.
        same_caption: pairs with the same caption.
        by_caption: scores by the length of the caption.
        by_picture: scores by the size of the picture.
        facts: what was scored, with what model, …; shown under the heading.
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

    def __post_init__(self) -> None:
        levels, found = len(self.borders) + 1, len(self.levels)
        require(found == levels, f"expected {levels} levels for {levels - 1} borders, found {found}")
        bins, edges = len(self.bin_counts), len(self.bin_edges)
        require(edges == bins + 1 or not bins, f"expected {bins + 1} edges of {bins} bins, found {edges}")
        for pair in (*self.examples, *self.lowest):
            require(1 <= pair.level <= levels, f"expected a level in 1…{levels}, found {pair.level}")


def build_levels_page(page: LevelsPage, out: str | Path) -> None:
    """Write the page as one HTML file that needs no other file and makes no request.

    Args:
        page: what to show.
        out: the HTML file; written atomically, folders are made.

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
    """Digits behind the point that keep neighbouring borders apart."""
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
        ("by_picture", "side of the picture in pixels", page.by_picture),
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
    """Half the 95 % interval of each mean: whether means differ is asked, not how far single scores lie apart."""
    return [1.96 * spread / sqrt(count) for spread, count in zip(binned.deviations, binned.counts, strict=True)]
