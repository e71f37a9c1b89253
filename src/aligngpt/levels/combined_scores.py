"""Scores from several columns of a table, combined by rank with weights.

Columns have different scales and distributions: cosines of CLIP lie within a few hundredths, ratings are 1 to 5, and a
perplexity has a long tail. A weighted sum of the numbers, or of z-scores, would be decided by the widest or most
skewed column. So each column is replaced by its rank among the rows, from 0 to 1 with equal values sharing their mean
rank, and the weights then say how much each column counts. Levels of equal size depend on ranks only, so a single
column gives the same levels with or without this step.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from aligngpt.levels.columns import check_weights
from aligngpt.levels.score_tables import ScoreBatch, ScoreTable
from aligngpt.progress import Meter
from aligngpt.scoring.score_files import ScoresError


class _Combined(NamedTuple):
    """Row numbers, ascending, of the rows that have a score in every column, and their combined scores, `(rows,)`."""

    numbers: NDArray[np.int64]
    scores: NDArray[np.float64]


class CombinedScores(ScoreTable):
    """The weighted mean of the ranks of several columns, 0…1.

    Rows that lack a score in any of the columns have none. A column with a negative weight counts from the other end:
    its lowest value is the best. Holds 16 bytes per row and column in memory while the ranks are computed.

    Attributes:
        base: the table with the column that is named first.

    Args:
        tables: the same table, once for each score column.
        weights: see `check_weights`, for the same columns.

    Raises:
        ScoresError: the weights are invalid.
    """

    def __init__(self, tables: Mapping[str, ScoreTable], weights: Mapping[str, float]) -> None:
        check_weights(weights)
        self.weights = dict(weights)
        self._tables = dict(tables)
        self.base = self._tables[next(iter(weights))]
        self._combined: _Combined | None = None
        self._missing: dict[str, int] = {}
        self._all = 0

    @property
    def rows(self) -> int | None:
        return self.base.rows

    @property
    def schema(self) -> pa.Schema:
        return self.base.schema

    @property
    def names(self) -> Collection[str]:
        return self.base.names

    @property
    def copied(self) -> frozenset[str]:
        return self.base.copied - self.weights.keys()

    @property
    def files(self) -> tuple[Path, ...]:
        return self.base.files

    @property
    def records(self) -> Path | None:
        return self.base.records

    def reads(self, path: Path) -> bool:
        return self.base.reads(path)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences about the columns that users should read; complete once the rows have been read."""
        total = sum(map(abs, self.weights.values()))
        shares = ", ".join(
            f"{name} {abs(weight) / total:.0%}{' (lower is better)' if weight < 0 else ''}"
            for name, weight in self.weights.items()
        )
        said = [f"score: mean rank of the columns, 0 to 1, weighted {shares}"]
        if missing := ", ".join(f"{name} {count}" for name, count in self._missing.items() if count):
            said.append(f"rows that lack a score in a column have no level; without a score: {missing}")
        return (*said, *self.base.remarks)

    def batches(self, *, with_columns: bool = False) -> Iterator[ScoreBatch]:
        numbers, scores = self._ranked()
        for batch in self.base.batches(with_columns=with_columns):
            places = np.searchsorted(numbers, batch.numbers)
            kept = places < len(numbers)
            kept[kept] = numbers[places[kept]] == batch.numbers[kept]
            mask = pa.array(kept)
            yield ScoreBatch(
                batch.numbers[kept],
                pc.filter(batch.ids, mask),
                scores[places[kept]],
                None if batch.columns is None else batch.columns.filter(mask),
                batch.without + int((~kept).sum()),
            )

    def _ranked(self) -> _Combined:
        if self._combined is not None:
            return self._combined
        columns: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        for name in self.weights:
            table = self._tables[name]
            numbers, scores, without = [np.empty(0, np.int64)], [np.empty(0)], 0
            with Meter(f"reading {name}", table.rows, unit="rows") as meter:
                for batch in table.batches():
                    numbers.append(batch.numbers)
                    scores.append(batch.scores)
                    without += batch.without
                    meter.advance(len(batch.scores) + batch.without)
            columns[name] = np.concatenate(numbers), np.concatenate(scores)
            self._missing[name] = without
        common = columns[next(iter(columns))][0]
        for numbers_of, _ in columns.values():
            common = np.intersect1d(common, numbers_of, assume_unique=True)
        if not len(common):
            counts = ", ".join(f"{name} in {len(found[0])}" for name, found in columns.items())
            raise ScoresError(f"no row has a score in all of the columns ({counts} rows); combine other columns")
        combined = np.zeros(len(common))
        total = sum(map(abs, self.weights.values()))
        for name, weight in self.weights.items():
            numbers_of, scores_of = columns[name]
            ranks = mean_ranks(scores_of[np.searchsorted(numbers_of, common)])
            combined += abs(weight) / total * (ranks if weight > 0 else 1 - ranks)
        self._combined = _Combined(common, combined)
        return self._combined


def mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of values below each value, plus half the share of those equal to it: `(rows,)`, between 0 and 1."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    middles = (np.cumsum(counts) - counts / 2) / max(1, len(values))
    found: NDArray[np.float64] = middles[which.reshape(-1)]
    return found
