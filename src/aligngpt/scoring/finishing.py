"""The end of a scoring job: its outcome is judged and written into the manifest."""

from collections.abc import Mapping
from pathlib import Path

from aligngpt.data.records.pairs import PairSource
from aligngpt.scoring.manifest import Manifest, finish
from aligngpt.scoring.reject_share import check_outcome
from aligngpt.scoring.score_files import PartSummary
from aligngpt.scoring.separation import separation


def finish_job(
    out: Path,
    manifest: Manifest,
    outcomes: Mapping[int, PartSummary],
    source: PairSource,
    max_share: float,
    *,
    rescored: bool,
) -> Manifest:
    """Mark a job whose parts all exist as finished; returns its manifest.

    Args:
        out: folder of the scores.
        manifest: the manifest in `out`.
        outcomes: the outcome of every shard, by shard number.
        source: the source that was scored.
        max_share: maximum share of rejected records, 0…1.
        rescored: whether a part was written since the manifest.

    Raises:
        TooManyRejects, ScoresError: see `check_outcome` and `finish`; or a part was removed meanwhile.
        OSError: the manifest cannot be written.
    """
    total = sum((outcomes[index] for index in sorted(outcomes)), PartSummary())
    check_outcome(out, total, max_share, source.place)
    if manifest.finished == total and not rescored and (manifest.auc is not None or not manifest.shuffled):
        return manifest
    auc = separation(out, manifest.shards) if manifest.shuffled else None
    return finish(out, manifest, total, source, auc=auc)
