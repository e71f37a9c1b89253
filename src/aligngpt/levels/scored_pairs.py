"""The output folder of `aligngpt score` as a score table."""

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
    """The scores in an output folder of `aligngpt score`; row numbers are record numbers of the source.

    Args:
        folder: the folder.

    Raises:
        ScoresError: the job is not finished, or a part is damaged.
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
                    f"{part_path(folder, shard)} or its rejects cannot be read; run the same `aligngpt score` again to "
                    "rewrite this part"
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
        """Whether a path is a part, a rejects file or the manifest, or has the name of one."""
        owned = (PART_PATTERN, REJECTS_PATTERN, MANIFEST)
        if path.parent.resolve() == self.folder.resolve() and any(path.match(name) for name in owned):
            return True
        # The path may be a link to such a file, or the file itself may be a link.
        return path.exists() and any(path.samefile(kept) for name in owned for kept in self.folder.glob(name))
