"""The scores in a folder that `aligngpt score` wrote, as a table that becomes levels."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from aligngpt.levels.score_tables import ScoreBatch, ScoreTable
from aligngpt.scoring.manifest import MANIFEST, finished_manifest
from aligngpt.scoring.score_files import (
    PART_PATTERN,
    REJECTS_PATTERN,
    ScoresError,
    part_path,
    part_summary,
    read_batches,
)


class ScoredPairs(ScoreTable):
    """The scores in a folder that `aligngpt score` wrote; a row's number is that of its record in the source.

    Args:
        folder: the folder.

    Raises:
        ScoresError: the job was not finished, or a part is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = finished_manifest(folder)
        self._starts = np.zeros(self.manifest.shards, dtype=np.int64)
        at = 0
        for shard in range(self.manifest.shards):
            self._starts[shard] = at
            summary = part_summary(folder, shard)
            if summary is None:
                raise ScoresError(
                    f"{part_path(folder, shard)} or its rejects cannot be read; run the same `aligngpt score` again: "
                    "it makes this part anew"
                )
            at += summary.records

    @property
    def rows(self) -> int | None:
        assert self.manifest.finished is not None
        return self.manifest.finished.scored

    def batches(self, *, with_columns: bool = False) -> Iterator[ScoreBatch]:
        for batch in read_batches(self.folder, self.manifest.shards, ("record", "id", "score")):
            numbers = self._starts[batch["shard"].to_numpy()] + batch["record"].to_numpy()
            scores = batch["score"].to_numpy().astype(np.float64)
            yield ScoreBatch(numbers, batch["id"], scores, None, 0)

    def reads(self, path: Path) -> bool:
        """Whether a path is a part, its rejects or the manifest, or is named as if it were."""
        owned = (PART_PATTERN, REJECTS_PATTERN, MANIFEST)
        if path.parent.resolve() == self.folder.resolve() and any(path.match(name) for name in owned):
            return True
        # Through a link, or where the part itself is one.
        return path.exists() and any(path.samefile(kept) for name in owned for kept in self.folder.glob(name))
