"""Adds derived scores to the parts of a finished folder, as further columns; resumable.

The footer of a part records what each added column was computed with. A part keeps a column only if that is still so;
otherwise the column is first removed from all parts and then added again, so that parts never mix two computations.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from aligngpt.device import resolve_device
from aligngpt.progress import Meter, say
from aligngpt.scoring.checksums import KEY, with_checksums
from aligngpt.scoring.derived.measures import batch_numbers, negcliploss, specificity
from aligngpt.scoring.derived.near_duplicates import MOST_IMAGES, near_duplicates
from aligngpt.scoring.derived.reading import FirstImages, Gathered, Overview, features_of, gather, overview
from aligngpt.scoring.manifest import finished_manifest
from aligngpt.scoring.score_files import ScoresError, part_metadata, part_path, read_whole_part, write_whole
from aligngpt.scoring.shares import owned_share

Computed = dict[str, str | int | float]
"""What a derived score was computed with: its settings, and under `scores` the digest of the folder's scores."""

Recorded = dict[str, Computed]

ADDED = "aligngpt.added"
"""Footer metadata key under which a part records what its added columns were computed with, as JSON."""

COLUMNS = {
    "negcliploss": pa.field("negcliploss", pa.float32(), nullable=False),
    "specificity": pa.field("specificity", pa.float32(), nullable=False),
    "duplicates": pa.field("duplicate_group", pa.int64(), nullable=False),
}
"""The column of each derived score. `duplicate_group` is the number, in the order of the source and counting only
scored pairs, of the first pair in the pair's group of near-duplicates: its own number if there is no earlier one."""

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-4, 100.0
"""Beyond these, the normaliser is, to the precision of its numbers, the largest similarity or a constant."""


@dataclass(frozen=True)
class Settings:
    """What derived scores are computed with.

    Attributes:
        batch_size, batches, seed, temperature: of negCLIPLoss, see `batch_numbers` and `negcliploss`. The defaults are
            those of the paper.
        cosine: smallest cosine of near-duplicate images.
    """

    batch_size: int = 32768
    batches: int = 10
    seed: int = 0
    temperature: float = 0.01
    cosine: float = 0.95

    def of(self, measure: str) -> dict[str, int | float]:
        """The settings that a derived score depends on."""
        names = {"negcliploss": ("batch_size", "batches", "seed", "temperature"), "duplicates": ("cosine",)}
        return {name: getattr(self, name) for name in names.get(measure, ())}


@dataclass(frozen=True)
class Added:
    """The outcome.

    Attributes:
        pairs: number of pairs in the folder.
        parts: number of parts that were written now.
        duplicates: number of pairs whose image is a near-duplicate of an earlier pair's, if they were looked for now.
    """

    pairs: int
    parts: int
    duplicates: int | None = None


def add_scores(out: Path, measures: Sequence[str], settings: Settings | None = None, *, device: str = "auto") -> Added:
    """Add derived scores to every part of a finished folder, or resume an interrupted call.

    Args:
        out: folder of the scores, with embeddings.
        measures: some of `COLUMNS`.
        settings: what to compute them with; the defaults if None.
        device: `cpu`, `cuda`, `mps` or `auto`.

    Raises:
        ScoresError: the folder is not finished or has no embeddings, a setting is out of range, there are fewer than
            two pairs, or too many images to look for near-duplicates.
        FolderInUse: another process is working on the folder.
        DeviceError: the device is not available.
        OSError: a part cannot be written.
    """
    settings = settings or Settings()
    _check(measures, settings)
    where = resolve_device(device)
    if not finished_manifest(out).embeddings:
        raise ScoresError(
            f"{out} has no embeddings, from which these scores are computed; score the source into another folder with "
            "`aligngpt score --embeddings`"
        )
    with owned_share(out, None):
        manifest = finished_manifest(out)
        images = FirstImages(MOST_IMAGES) if "duplicates" in measures else None
        found = overview(out, manifest, images)
        if found.pairs < 2:
            raise ScoresError(f"{out} has {found.pairs} scored pairs; these scores compare pairs and need at least two")
        wanted: Recorded = {measure: {"scores": found.digest, **settings.of(measure)} for measure in measures}
        _remove_others(out, manifest.shards, wanted)
        todo = [shard for shard in range(manifest.shards) if not set(wanted) <= set(_recorded(out, shard))]
        if not todo:
            return Added(found.pairs, 0)
        work = _Work(out, found, measures, settings, images, where)
        with Meter("adding scores", len(todo), unit="parts") as meter:
            for shard in todo:
                work.write(shard, wanted)
                meter.advance()
    return Added(found.pairs, len(todo), work.duplicates)


class _Work:
    """Computes the derived scores of one part after another."""

    def __init__(
        self,
        out: Path,
        found: Overview,
        measures: Sequence[str],
        settings: Settings,
        images: FirstImages | None,
        device: torch.device,
    ) -> None:
        self._out, self._found, self._measures, self._settings = out, found, measures, settings
        self._images, self._device = images, device
        numbers = []
        if "negcliploss" in measures:
            numbers = batch_numbers(found.pairs, settings.batch_size, settings.batches, settings.seed)
        first_pairs = [] if images is None else images.first_pairs
        self._gathered: Gathered = gather(out, found, numbers, first_pairs, device)
        self._groups: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.duplicates: int | None = None
        if images is not None:
            with Meter("comparing images", len(first_pairs), unit="images") as meter:
                of_images = near_duplicates(self._gathered.images, settings.cosine, meter.advance)
            self._groups = np.asarray(first_pairs)[of_images]
            self.duplicates = found.pairs - len(np.unique(self._groups))

    def write(self, shard: int, wanted: Recorded) -> None:
        part = read_whole_part(self._out, shard)
        recorded = _recorded(self._out, shard)
        for measure in self._measures:
            if measure not in recorded:
                part = part.append_column(COLUMNS[measure], pa.array(self._values(measure, part, shard)))
        _replace(self._out, shard, part, recorded | wanted)

    def _values(self, measure: str, part: pa.Table, shard: int) -> NDArray[np.generic]:
        if measure == "duplicates":
            assert self._images is not None
            known = self._images.numbers
            return self._groups[[known[name] for name in part["image_hash"].to_pylist()]]
        images, captions = features_of(part)
        if measure == "specificity":
            return specificity(images.numpy(), captions.numpy(), self._gathered.image_sum, self._found.pairs)
        numbers = np.arange(self._found.starts[shard], self._found.starts[shard + 1])
        features = images.to(self._device), captions.to(self._device)
        return negcliploss(*features, numbers, self._gathered.batches, self._settings.temperature)


def _check(measures: Sequence[str], settings: Settings) -> None:
    if unknown := [measure for measure in measures if measure not in COLUMNS] or (not measures and ["nothing"]):
        raise ScoresError(f"expected one or more of {', '.join(COLUMNS)}, found {', '.join(unknown)}")
    if settings.batch_size < 2 or settings.batches < 1:
        raise ScoresError(
            "negCLIPLoss needs at least 2 pairs per batch and 1 batch, found "
            f"{settings.batch_size} and {settings.batches}"
        )
    if not LOWEST_TEMPERATURE <= settings.temperature <= HIGHEST_TEMPERATURE:
        raise ScoresError(
            f"the temperature of negCLIPLoss must be in {LOWEST_TEMPERATURE:g}…{HIGHEST_TEMPERATURE:g}, found "
            f"{settings.temperature}"
        )
    if not -1 <= settings.cosine <= 1:
        raise ScoresError(f"the cosine of near-duplicates must be in -1…1, found {settings.cosine}")


def _remove_others(out: Path, shards: int, wanted: Recorded) -> None:
    """Remove the wanted columns from all parts where they were computed with something else."""
    told: set[str] = set()
    for shard in range(shards):
        recorded = _recorded(out, shard)
        stale = [name for name in wanted if name in recorded and recorded[name] != wanted[name]]
        if not stale:
            continue
        for name in stale:
            if name not in told:
                told.add(name)
                say(_remark(name, recorded[name], wanted[name]))
        part = read_whole_part(out, shard).drop_columns([COLUMNS[name].name for name in stale])
        _replace(out, shard, part, {name: one for name, one in recorded.items() if name not in stale})


def _remark(measure: str, before: Computed, now: Computed) -> str:
    changed = [f"{name} {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name]]
    changed = [one for one in changed if not one.startswith("scores ")]
    why = ", ".join(changed) or "pairs were scored again"
    return f"{measure} is computed again in all parts ({why})"


def _replace(out: Path, shard: int, part: pa.Table, recorded: Recorded) -> None:
    metadata = {name: text for name, text in part_metadata(out, shard).items() if name not in (KEY, ADDED)}
    if recorded:
        metadata[ADDED] = json.dumps(recorded, sort_keys=True)
    write_whole(part_path(out, shard), with_checksums(part, metadata))


def _recorded(out: Path, shard: int) -> Recorded:
    """What the added columns of a part were computed with, by derived score."""
    found: Recorded = json.loads(part_metadata(out, shard).get(ADDED, "{}"))
    return found
