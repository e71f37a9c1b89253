"""What the commands that write scores have in common."""

import shlex
from pathlib import Path

SHARD_SIZE = 10_000
"""Pairs per shard, and so per part of the scores."""


def next_command(source: str, out: Path, levels: int | None = None) -> str:
    """The command that makes levels of the scores.

    Args:
        source: the source that was scored.
        out: folder of the scores.
        levels: the number of levels; the default if None.
    """
    from aligngpt.data.sources.remote import written_beside

    path = Path(source)
    if path.suffix in (".json", ".jsonl"):
        options = ["--source", source, "--out", str(written_beside(source, f"{path.stem}-levels{path.suffix}"))]
    else:
        # `.` and `..` have no name of their own.
        place = out if out.name not in ("", "..") else out.resolve()
        options = ["--out", str(place.parent / f"{place.name or 'scores'}-levels.parquet")]
    if levels is not None:
        options = ["--levels", str(levels), *options]
    return shlex.join(["aligngpt", "levels", str(out), *options])
