"""One pass over scored pairs collects statistics and examples for the levels page, in bounded memory."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aligngpt.alignment.levels import AlignmentLevels, thin_levels
from aligngpt.levels.placed_pairs import RECORD_BITS, PlacedPair
from aligngpt.levels.repeats import HashCounter
from aligngpt.levels.scored_pairs import ScoredPairs
from aligngpt.levels.streaming import BinnedScores, ScoreHistogram, Smallest
from aligngpt.progress import Meter
from aligngpt.reports.levels_page import LevelRow
from aligngpt.scoring.score_files import read_batches

LOWEST = 100
EXAMPLES_PER_LEVEL, MOST_EXAMPLES = 6, 240

CAPTION_TOKENS = (1, 5, 9, 13, 17, 25, 33, 49, 65, 97, 129)
PICTURE_SIDES = (1, 64, 128, 224, 336, 512, 768, 1024, 1536, 2048)

_COLUMNS = ("record", "id", "caption_tokens", "width", "height", "image_hash")


class Collected:
    """Statistics and examples from one pass over the scored pairs."""

    def __init__(self, levels: AlignmentLevels, seed: int) -> None:
        self.histogram = ScoreHistogram()
        self.lowest: Smallest[PlacedPair] = Smallest(LOWEST)
        size = min(EXAMPLES_PER_LEVEL, max(1, MOST_EXAMPLES // levels.num_levels))
        self.examples: list[Smallest[PlacedPair]] = [Smallest(size) for _ in range(levels.num_levels)]
        self.pictures = HashCounter()
        self.by_caption, self.by_picture = BinnedScores(CAPTION_TOKENS), BinnedScores(PICTURE_SIDES)
        # Per level: number of pairs, sum of caption tokens, sum of image sides.
        self.sums = np.zeros((3, levels.num_levels))
        self._levels = levels
        self._random = np.random.default_rng(seed)

    def read(self, table: ScoredPairs) -> None:
        """Read all scored pairs."""
        with Meter("summarising pairs", table.rows, unit="pairs") as meter:
            for batch in read_batches(table.folder, table.manifest.shards, (*_COLUMNS, table.column)):
                places = (batch["shard"].to_numpy().astype(np.int64) << RECORD_BITS) | batch["record"].to_numpy()
                scores = batch[table.column].to_numpy().astype(np.float64)
                sides = np.sqrt(batch["width"].to_numpy().astype(np.float64) * batch["height"].to_numpy())
                hashes = np.array([int(name[:16], 16) for name in batch["image_hash"].to_pylist()], dtype=np.uint64)
                self._draw(places, batch["id"], scores)
                self._measure(scores, batch["caption_tokens"].to_numpy().astype(np.int64), sides)
                self.pictures.add(hashes, places)
                meter.advance(batch.num_rows)

    def rows(self) -> list[LevelRow]:
        """The table rows of the levels."""
        counts, tokens, sides = self.sums
        thin = thin_levels(counts)
        return [
            LevelRow(int(count), level in thin, tokens[level - 1] / count, sides[level - 1] / count)
            if count
            else LevelRow(0, level in thin)
            for level, count in enumerate(counts, start=1)
        ]

    def _draw(self, places: NDArray[np.int64], ids: Sequence, scores: NDArray[np.float64]) -> None:
        def row(at: int) -> PlacedPair:
            return PlacedPair(int(places[at]), str(ids[at]), float(scores[at]))

        self.lowest.add(scores, row)
        # One random number per row, so the result does not depend on the batch sizes.
        keys, assigned = self._random.random(len(scores)), self._levels.assign(scores)
        for level in np.unique(assigned).tolist():
            self.examples[level - 1].add(np.where(assigned == level, keys, np.inf), row)

    def _measure(self, scores: NDArray[np.float64], tokens: NDArray[np.int64], sides: NDArray[np.float64]) -> None:
        self.histogram.add(scores)
        self.by_caption.add(tokens, scores)
        self.by_picture.add(np.rint(sides).astype(np.int64), scores)
        assigned = self._levels.assign(scores) - 1
        for sums, weights in zip(self.sums, (np.ones(len(scores)), tokens, sides), strict=True):
            sums += np.bincount(assigned, weights, minlength=self._levels.num_levels)
