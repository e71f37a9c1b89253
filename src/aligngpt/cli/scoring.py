"""What the commands that write scores have in common."""

import shlex
from pathlib import Path

SHARD_SIZE = 10_000
"""Pairs per shard, and so per part of the scores."""

ARCHIVES = ("parquet", "webdataset", "dataset")
"""The kinds of sources whose records `aligngpt levels` cannot write."""


def next_command(source: str, out: Path, kind: str, levels: int | None = None) -> str:
    """The command that makes levels of the scores, and writes them into the records where it can.

    Args:
        source: the source that was scored.
        out: folder of the scores.
        kind: kind of the source, see `PairSource.kind`.
        levels: the number of levels; the default if None.
    """
    from aligngpt.data.sources.levels_file import levels_file

    if kind in ARCHIVES:
        # `.` and `..` have no name of their own.
        place = out if out.name not in ("", "..") else out.resolve()
        options = ["--out", str(place.parent / f"{place.name or 'scores'}-levels.parquet")]
    else:
        options = ["--source", source, "--out", str(levels_file(source))]
    if levels is not None:
        options = ["--levels", str(levels), *options]
    return shlex.join(["aligngpt", "levels", str(out), *options])
