"""The manifest of a folder of scores: all that they depend on, so that a job resumes only with the same settings."""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligngpt.data.records.pairs import PairSource
from aligngpt.data.sources.base import Shard
from aligngpt.leftovers import remove_leftovers, temporary_beside
from aligngpt.scoring.first_pairs import FirstPairs
from aligngpt.scoring.score_files import PART_PATTERN, PartSummary, ScoresError, part_path, write_whole
from aligngpt.scoring.several_models import FurtherModel, further_models

if TYPE_CHECKING:
    from aligngpt.scoring.encoders import PairScorer

MANIFEST = "manifest.json"
SCORE = "cosine similarity of image and text features, not scaled"

_NAMES = {
    "source": "source of pairs",
    "model_fingerprint": "model",
    "preprocessing": "image processor",
    "dtype": "precision",
    "batch_size": "batch size",
    "embeddings": "embeddings setting",
    "shards": "number of shards",
    "cut": "split of the source into shards",
    "score": "meaning of the score",
}

_READING = {
    "caption_column": "caption column",
    "image_column": "image column",
    "id_column": "id column",
    "image_root": "image root",
}

JUDGED = "reply of a judge"
"""How the meaning of a score begins if a judge gave it."""

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""Errors raised by file systems without hard links."""


@dataclass(frozen=True)
class Manifest:
    """All that the scores in a folder depend on, and the outcome of the job.

    Attributes:
        source: kind and fingerprint of the source of pairs.
        reading: how its records are read, see `PairSource.settings`; None in folders of earlier versions.
        shards: number of shards in the source, and so of parts.
        cut: SHA-256 of the names and record counts of the shards: the same source can be split differently.
        model: name or folder of the model; not compared, since the same model may have several.
        model_fingerprint: see `PairScorer.fingerprint`.
        preprocessing: the settings of the model's image processor.
        dtype: the precision in which the model computes.
        batch_size: distinct images, or distinct captions, encoded together.
        embeddings: whether the parts contain the features.
        score: the meaning of the score.
        shuffled: whether the parts contain shuffled scores, see `aligngpt.scoring.separation`. Not compared:
            a resumed job continues as it began.
        more_models: the models after the first, each with the column of its scores.
        limit: number of records scored, if only the first records of the source are.
        finished: numbers of scored and rejected records; None until all parts exist.
        auc: see `aligngpt.scoring.separation`, 0…1; None if it is unknown.
    """

    source: dict[str, str]
    shards: int
    cut: str
    model: str
    model_fingerprint: str
    preprocessing: dict[str, Any]
    dtype: str
    batch_size: int
    embeddings: bool
    score: str = SCORE
    reading: dict[str, str | None] | None = None
    shuffled: bool = False
    more_models: tuple[FurtherModel, ...] = ()
    limit: int | None = None
    finished: PartSummary | None = None
    auc: float | None = None

    @classmethod
    def of(
        cls,
        source: PairSource,
        scorer: "PairScorer",
        *,
        batch_size: int,
        embeddings: bool,
        others: "Sequence[PairScorer]" = (),
    ) -> "Manifest":
        """The manifest of a new job.

        Raises:
            ScoresError: two of the models are the same.
        """
        shards = source.shards()
        cut = json.dumps([(shard.index, shard.name, shard.records) for shard in shards])
        return cls(
            source={"kind": source.kind, "fingerprint": source.fingerprint()},
            shards=len(shards),
            cut=hashlib.sha256(cut.encode()).hexdigest(),
            model=str(scorer.model.name_or_path),
            model_fingerprint=scorer.fingerprint,
            preprocessing=json.loads(scorer.image_processor.to_json_string()),
            dtype=str(scorer.dtype).removeprefix("torch."),
            batch_size=batch_size,
            embeddings=embeddings,
            reading=source.settings(),
            shuffled=True,
            more_models=further_models(scorer, others),
            limit=source.limit if isinstance(source, FirstPairs) else None,
        )

    @property
    def command(self) -> str:
        """The command that the job belongs to, for messages."""
        return "aligngpt judge" if self.score.startswith(JUDGED) else "aligngpt score"

    def write(self, out: Path) -> None:
        """Write the manifest into `out`; safe to call from several processes at the same time.

        Raises:
            OSError: the disk is full or the folder is not writable.
        """
        write_whole(out / MANIFEST, self._content())

    def create(self, out: Path) -> None:
        """Write the manifest into `out` unless there is one; of several concurrent processes, only one writes it.

        Raises:
            OSError: the disk is full or the folder is not writable.
        """
        whole = temporary_beside(out / MANIFEST)
        write_whole(whole, self._content())
        try:
            os.link(whole, out / MANIFEST)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._create_without_links(out)
        finally:
            whole.unlink(missing_ok=True)

    def _create_without_links(self, out: Path) -> None:
        with suppress(FileExistsError), (out / MANIFEST).open("xb", buffering=0) as file:
            file.write(self._content())

    def _content(self) -> bytes:
        content = asdict(self)
        if self.finished is not None:
            content["finished"] |= {"rejected": self.finished.rejected}
        return (json.dumps(content, indent=2) + "\n").encode()


def read_manifest(out: Path) -> Manifest:
    """Read the manifest of a folder of scores.

    Raises:
        ScoresError: the folder has no manifest, or it is damaged.
    """
    path = out / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if finished := content.pop("finished"):
            finished = PartSummary(int(finished["scored"]), dict(finished["reasons"]))
        more = tuple(FurtherModel(**one) for one in content.pop("more_models", ()))
        return Manifest(**content, more_models=more, finished=finished)
    except FileNotFoundError as error:
        raise ScoresError(f"{out} holds no scores (there is no {MANIFEST}); run `aligngpt score` first") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScoresError(f"{path} is damaged ({error}). {_how_to_replace(path)}") from error


def begun_precision(out: Path, asked: str) -> str:
    """The precision to load a model in: `auto` becomes that of the scores already in `out`, if there are any.

    Args:
        out: folder of the scores.
        asked: the requested precision: `auto`, `float32` or `bfloat16`.

    Raises:
        ScoresError: the manifest in `out` is damaged.
    """
    return read_manifest(out).dtype if asked == "auto" and (out / MANIFEST).exists() else asked


def finished_manifest(out: Path) -> Manifest:
    """Read the manifest of a finished job.

    Raises:
        ScoresError: as in `read_manifest`, or the job is not finished.
    """
    manifest = read_manifest(out)
    if manifest.finished is None:
        raise ScoresError(f"{out} is not finished; run the same `{manifest.command}` command again to resume it")
    return manifest


def claim(out: Path, manifest: Manifest) -> Manifest:
    """Claim `out` for this job, or check that it belongs to the same job; returns the manifest in the folder.

    Raises:
        ScoresError: `out` holds the scores of a different job.
        OSError: the folder is not writable.
    """
    remove_leftovers(out / MANIFEST)
    # Check for parts first: between the two checks, another process may write the manifest and then its first part.
    holds_parts = any(out.glob(PART_PATTERN))
    if not (out / MANIFEST).exists():
        if holds_parts:
            raise ScoresError(f"{out} holds parts of scores but no {MANIFEST}. {_how_to_replace(out / MANIFEST)}")
        manifest.create(out)
    # Read it even after writing it: another process may have been first.
    found = read_manifest(out)
    if found.reading is None:
        raise ScoresError(
            f"{out} holds scores of an earlier version of aligngpt, which did not record how the source was read; "
            "choose another folder, or remove this one to score again"
        )
    if different := list(_differences(found, manifest)):
        raise ScoresError(
            f"{out} holds scores of another {' and another '.join(different)}; choose another folder, or remove this "
            "one to score again"
        )
    return found


def finish(
    out: Path, manifest: Manifest, summary: PartSummary, source: PairSource, *, auc: float | None = None
) -> Manifest:
    """Mark the job as finished in the manifest; returns the manifest with its outcome.

    Raises:
        ScoresError: the source changed since the job began.
        OSError: the disk is full or the folder is not writable.
    """
    if source.fingerprint() != manifest.source["fingerprint"]:
        raise ScoresError(
            f"{source.place} has changed since {out} was begun, so the parts may mix both versions, and the job is not "
            f"marked as finished. Restore the old source and remove the parts that were scored since the change, or "
            f"remove {out} and score again"
        )
    finished = replace(manifest, finished=summary, auc=auc)
    finished.write(out)
    return finished


def before_rescoring(out: Path, shards: Iterable[Shard]) -> None:
    """Remove the parts that are about to be scored again, and the outcome in the manifest.

    Otherwise, an interrupted job would leave a folder that mixes old and new scores and passes for finished.

    Args:
        out: folder of the scores, with a manifest.
        shards: the shards to score; they may have no parts.

    Raises:
        ScoresError: the manifest is damaged.
        OSError: the disk is full or the folder is not writable.
    """
    # Another process that shares the job may have written it meanwhile.
    manifest = read_manifest(out)
    if manifest.finished is not None or manifest.auc is not None:
        replace(manifest, finished=None, auc=None).write(out)
    for shard in shards:
        part_path(out, shard.index).unlink(missing_ok=True)


def _differences(found: Manifest, wanted: Manifest) -> Iterator[str]:
    """Names of the settings in which a folder's manifest differs from that of a job."""
    if found.limit != wanted.limit:
        # It also changes the shards, which would say less.
        held, asked = (f"only the first {one.limit}" if one.limit else "all" for one in (found, wanted))
        yield f"limit ({held} records, now {asked} records)"
        return
    # The columns are not compared: they remain those of the folder, whatever the models are called now.
    if _identities(found) != _identities(wanted):
        held, asked = (" and ".join([one.model, *(more.model for more in one.more_models)]) for one in (found, wanted))
        yield f"set of models ({held}, now {asked})"
    for name, text in _NAMES.items():
        if getattr(found, name) != getattr(wanted, name):
            yield text
    yield from reading_differences(found.reading or {}, wanted.reading or {})


def _identities(manifest: Manifest) -> list[tuple[object, ...]]:
    return [(one.model_fingerprint, one.preprocessing, one.dtype) for one in manifest.more_models]


def reading_differences(before: Mapping[str, str | None], now: Mapping[str, str | None]) -> Iterator[str]:
    """Differences between how a source's records were read and are read now, see `PairSource.settings`."""
    # The root is the same if its relative or its absolute path is: the data may have moved with or without its images.
    same_root = before.get("image_root_absolute") == now.get("image_root_absolute")
    for name, text in _READING.items():
        if before.get(name) != now.get(name) and not (name == "image_root" and same_root):
            held, asked = (reading.get(name) or "none" for reading in (before, now))
            yield f"{text} ({held}, now {asked})"


def _how_to_replace(path: Path) -> str:
    return (
        "The parts beside it are kept. To keep using them: run the command that wrote them with another folder "
        f"as --out, stop it as soon as there is a {MANIFEST} in that folder, and move this file to {path}; the first "
        "command then resumes here. It can no longer check that the source, model and settings are still those of the "
        f"parts; if you are not sure that they are, remove {path.parent} and score again"
    )
