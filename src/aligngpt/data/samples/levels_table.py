"""Levels of Parquet and tar files in a table beside them, so that the files need not be written again."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from aligngpt.data.records.sample import Sample
from aligngpt.data.sources.base import SourceError
from aligngpt.data.sources.finding import Archive

RECORD = "record"
"""Column of the number of a record in the data that was scored, from 0, consecutive over its files."""

SOURCE_KEY = b"aligngpt.source"
"""Metadata of the table: the fingerprint of the data that was scored."""


@dataclass(frozen=True)
class LevelsTable:
    """The level of each record of a source.

    Args:
        path: the table, as `aligngpt levels` writes it for a folder of scores.
        levels: 1…N by record number, `(records,)`; 0 for records without a score.
    """

    path: Path
    levels: NDArray[np.int32]

    @classmethod
    def load(cls, path: Path, data: Path, archive: Archive | None) -> "LevelsTable":
        """Read a table, and check that it is of this data.

        Args:
            path: the table.
            data: where the data is, for messages.
            archive: the data; None if it is not Parquet or tar files.

        Raises:
            SourceError: it cannot be read, is no such table, or is of other data.
        """
        if archive is None:
            raise SourceError(
                f"a table of levels is for Parquet and tar files, and {data} is neither: write the levels into its "
                f"records instead, with `aligngpt levels SCORES --source {data} --out FILE.json`"
            )
        try:
            with pq.ParquetFile(path) as file:
                metadata = file.schema_arrow.metadata or {}
                if RECORD not in file.schema_arrow.names or SOURCE_KEY not in metadata:
                    raise SourceError(
                        f"{path} does not say which records of {data} its levels are of, because it was not made from "
                        "a folder of scores; write it from the folder that `aligngpt score` made of that data, with "
                        f"`aligngpt levels SCORES --out {path.name}`"
                    )
                table = file.read([RECORD, "level"])
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"the levels {path} cannot be read: {error}") from error
        if metadata[SOURCE_KEY].decode() != archive.fingerprint():
            raise SourceError(
                f"{path} has the levels of other data than {data}, or the data has changed since; score it again"
            )
        records, levels = table[RECORD].to_numpy(), table["level"].to_numpy()
        by_record = np.zeros(int(records.max(initial=-1)) + 1, dtype=np.int32)
        by_record[records] = levels
        return cls(path, by_record)

    def applied_to(self, sample: Sample) -> Sample:
        """The sample with its level, in place of one of its own; without an image it has none."""
        level = int(self.levels[sample.record]) if sample.record < len(self.levels) else 0
        return replace(sample, level=level if level and sample.images else None)
