"""Builds the content of the levels page: statistics, examples, copies and the lowest scores."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from aligngpt.alignment.levels import thin_levels
from aligngpt.data.records.pairs import PairSource
from aligngpt.levels.collected import Collected
from aligngpt.levels.making import LevelsSummary
from aligngpt.levels.placed_pairs import RECORD_BITS, PlacedPair, count_captions, pairs_at, pick_pairs
from aligngpt.levels.repeats import HashCounter, Repeated
from aligngpt.levels.score_tables import DEFAULT_COLUMN, ScoreTable
from aligngpt.levels.scored_pairs import ScoredPairs, scored_base
from aligngpt.levels.streaming import BinnedScores, ScoreHistogram
from aligngpt.progress import Meter
from aligngpt.reports.levels_page import CopiedGroup, Copies, LevelRow, LevelsPage, ScoreByBin, ScoreNumbers, ShownPair

LARGEST_GROUPS = 12
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
BINS_DRAWN = 56

CAPTIONS_COMPARED = 1_000_000
"""Up to this number of pairs, all captions are compared; beyond it, only those in the shards that are read anyway."""


def page_of_table(table: ScoreTable, made: LevelsSummary, title: str) -> LevelsPage:
    """The page of a score table, or of several score columns: only scores and levels.

    Raises:
        ScoresError: the scores can no longer be read.
    """
    histogram = ScoreHistogram()
    with Meter("summarising scores", table.rows, unit="rows") as meter:
        for batch in table.batches():
            histogram.add(batch.scores)
            meter.advance(len(batch.scores) + batch.without)
    facts = _levels_facts(made)
    if made.without:
        facts["Without a score"] = f"{made.without:,} rows"
    if scored_base(table) is not None:
        facts["Images and captions"] = "only shown for a single score column"
    thin = thin_levels(made.counts)
    rows = [LevelRow(int(count), level in thin) for level, count in enumerate(made.counts, start=1)]
    return _page(title, histogram, made, rows, facts, _full_paths(made))


def _page(
    title: str,
    histogram: ScoreHistogram,
    made: LevelsSummary,
    rows: list[LevelRow],
    facts: dict[str, str],
    full: dict[str, str],
) -> LevelsPage:
    counts, edges = histogram.drawn(int(np.clip(np.sqrt(histogram.count), 16, BINS_DRAWN)))
    numbers = ScoreNumbers(
        count=histogram.count,
        mean=histogram.mean,
        standard_deviation=histogram.standard_deviation,
        quantiles={share: histogram.quantile(share) for share in QUANTILES} if histogram.count else {},
    )
    return LevelsPage(
        title=title,
        numbers=numbers,
        borders=list(made.levels.borders),
        # For borders of other scores, the deviation from the quantiles of these scores is unknown.
        rank_error=made.levels.rank_error if made.taken_from is None else 0.0,
        levels=rows,
        bin_counts=counts,
        bin_edges=edges,
        facts=facts,
        full=full,
        warnings=list(made.warnings),
    )


def page_of_pairs(
    table: ScoredPairs, made: LevelsSummary, source: PairSource | None, seed: int, title: str
) -> LevelsPage:
    """The page of the output of `aligngpt score`.

    Args:
        table: the scores.
        made: their levels.
        source: the pairs that were scored; None to show neither captions nor images.
        seed: random seed for the examples.
        title: heading of the page.

    Raises:
        ScoresError: the scores can no longer be read.
        SourceError: the source can no longer be read.
    """
    levels = made.levels
    collected = Collected(levels, seed)
    collected.read(table)
    examples = [row for level in collected.examples for row in sorted(level.rows(), key=lambda row: row.score)]
    lowest = collected.lowest.rows()
    pictures = collected.pictures.largest(LARGEST_GROUPS)
    wanted = {row.place for row in (*examples, *lowest)} | {group.place for group in pictures}
    captions, caption_groups = HashCounter(), list[Repeated]()
    if source is not None:
        everything = collected.histogram.count <= CAPTIONS_COMPARED
        read = None if everything else {place >> RECORD_BITS for place in wanted}
        captions = count_captions(table, source, read)
        caption_groups = captions.largest(LARGEST_GROUPS)
    groups = {group.place for group in (*pictures, *caption_groups)}
    wanted |= groups
    known = {row.place: row for row in (*examples, *lowest)}
    known |= pairs_at(table, groups - set(known))
    seen = {} if source is None else pick_pairs(source, wanted)

    def shown(row: PlacedPair) -> ShownPair:
        found = seen.get(row.place)
        level = int(levels.assign(row.score))
        if found is None:
            return ShownPair(row.id, level, row.score)
        return ShownPair(row.id, level, row.score, found.caption, found.picture, found.picture_name)

    def copies(counter: HashCounter, largest: Sequence[Repeated]) -> Copies:
        groups, pairs = counter.repeats()
        shown_groups = [CopiedGroup(group.times, shown(known[group.place]), group.most) for group in largest]
        return Copies(
            groups.value,
            pairs.value,
            counter.added,
            counter.share,
            shown_groups,
            groups_interval=(groups.low, groups.high),
            pairs_interval=(pairs.low, pairs.high),
        )

    page = _page(title, collected.histogram, made, collected.rows(), _facts(table, made), _full_paths(made, table))
    return replace(
        page,
        examples=[shown(row) for row in examples],
        lowest=[shown(row) for row in lowest],
        same_picture=copies(collected.pictures, pictures),
        same_caption=None if source is None else copies(captions, caption_groups),
        by_caption=_by_bin(collected.by_caption),
        by_picture=_by_bin(collected.by_picture),
    )


def _levels_facts(made: LevelsSummary) -> dict[str, str]:
    if made.taken_from is None:
        return {"Method": made.levels.method}
    return {
        "Borders": short_path(made.taken_from),
        "Fitted to": f"{made.levels.statistics.count:,} other scores ({made.levels.method})",
    }


def _facts(table: ScoredPairs, made: LevelsSummary) -> dict[str, str]:
    manifest = table.manifest
    facts = {"Scores": short_path(table.folder), "Model": _short_model(table.model)} | _levels_facts(made)
    if manifest.limit is not None:
        facts["Scored"] = f"only the first {manifest.limit:,} records (--limit)"
    if manifest.auc is not None and table.column == DEFAULT_COLUMN:
        facts["Pairs against shuffled ones"] = f"AUC {manifest.auc:.3f}"
    if manifest.finished is not None and manifest.finished.rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.finished.reasons.items())
        facts["Without a score"] = f"{manifest.finished.rejected:,} ({reasons})"
    return facts


def _full_paths(made: LevelsSummary, table: ScoredPairs | None = None) -> dict[str, str]:
    """The full paths of the facts that show a short one."""
    paths = {} if made.taken_from is None else {"Borders": os.path.abspath(made.taken_from)}
    if table is not None:
        paths["Scores"] = os.path.abspath(table.folder)
        if _short_model(table.model) != table.model:
            paths["Model"] = table.model
    return paths


def short_path(path: Path) -> str:
    """A path relative to the working folder if it is inside it, else its last two names."""
    full = Path(os.path.abspath(path))
    with suppress(ValueError):
        return full.relative_to(Path.cwd()).as_posix()
    return full.as_posix() if len(full.parts) <= 3 else f"…/{'/'.join(full.parts[-2:])}"


def _short_model(model: str) -> str:
    return short_path(Path(model)) if os.path.isabs(model) else model


def _by_bin(scores: BinnedScores) -> ScoreByBin | None:
    bins = scores.bins()
    if not bins:
        return None
    names, counts, means, deviations = (list(column) for column in zip(*bins, strict=True))
    return ScoreByBin(names, counts, means, deviations, scores.correlation())
