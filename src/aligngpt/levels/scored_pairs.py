"""The output folder of `aligngpt score` as a score table."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from aligngpt.data.samples.levels_table import RECORD, SOURCE_KEY
from aligngpt.levels.columns import did_you_mean
from aligngpt.levels.combined_scores import CombinedScores
from aligngpt.levels.score_tables import DEFAULT_COLUMN, ScoreBatch, ScoreTable
from aligngpt.scoring.manifest import MANIFEST, finished_manifest
from aligngpt.scoring.score_files import (
    PART_PATTERN,
    REJECTS_PATTERN,
    ScoresError,
    part_path,
    part_summary,
    read_batches,
    score_column_names,
)


class ScoredPairs(ScoreTable):
    """The scores in an output folder of `aligngpt score`; row numbers are record numbers of the source.

    Args:
        folder: the folder.
        column: the score column: `score`, that of a further model, or a derived one (see `score_column_names`).

    Raises:
        ScoresError: the job is not finished, a part is damaged, or there is no such column.
    """

    def __init__(self, folder: Path, column: str = DEFAULT_COLUMN) -> None:
        self.folder = folder
        self.column = column
        self.manifest = finished_manifest(folder)
        self._starts = np.zeros(self.manifest.shards, dtype=np.int64)
        at = 0
        for shard in range(self.manifest.shards):
            self._starts[shard] = at
            summary = part_summary(folder, shard)
            if summary is None:
                raise ScoresError(
                    f"{part_path(folder, shard)} or its rejects cannot be read; run the same "
                    f"`{self.manifest.command}` again to rewrite this part"
                )
            at += summary.records
            if column not in (names := score_column_names(folder, shard)):
                raise ScoresError(
                    f"{part_path(folder, shard)} has no score column {column}; its score columns are: "
                    f"{', '.join(names)}{did_you_mean(column, names)}. If it has been scored again, run the same "
                    "`aligngpt derive` command again"
                )

    @property
    def model(self) -> str:
        """Name of the model whose scores or embeddings the column is from."""
        names = {one.column: one.model for one in self.manifest.more_models}
        return names.get(self.column, self.manifest.model)

    @property
    def rows(self) -> int | None:
        assert self.manifest.finished is not None
        return self.manifest.finished.scored

    @property
    def schema(self) -> pa.Schema:
        """The record numbers, by which training joins levels to data that holds its images; see `LevelsTable`."""
        metadata = {SOURCE_KEY: self.manifest.source["fingerprint"].encode()}
        return pa.schema([pa.field(RECORD, pa.int64(), nullable=False)], metadata)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(part_path(self.folder, shard) for shard in range(self.manifest.shards))

    def batches(self, *, with_columns: bool = False) -> Iterator[ScoreBatch]:
        for batch in read_batches(self.folder, self.manifest.shards, ("record", "id", self.column)):
            numbers = self._starts[batch["shard"].to_numpy()] + batch["record"].to_numpy()
            scores = batch[self.column].to_numpy().astype(np.float64)
            columns = pa.record_batch([numbers], schema=self.schema) if with_columns else None
            yield ScoreBatch(numbers, batch["id"], scores, columns, 0)

    def reads(self, path: Path) -> bool:
        """Whether a path is a part, a rejects file or the manifest, or has the name of one."""
        owned = (PART_PATTERN, REJECTS_PATTERN, MANIFEST)
        if path.parent.resolve() == self.folder.resolve() and any(path.match(name) for name in owned):
            return True
        # The path may be a link to such a file, or the file itself may be a link.
        return path.exists() and any(path.samefile(kept) for name in owned for kept in self.folder.glob(name))


def scored_base(table: ScoreTable) -> ScoredPairs | None:
    """The folder of `aligngpt score` that a table, or several columns combined, comes from; None for other tables."""
    base = table.base if isinstance(table, CombinedScores) else table
    return base if isinstance(base, ScoredPairs) else None
