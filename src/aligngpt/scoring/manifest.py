"""What the scores in a folder depend on, kept beside them: who goes on with a folder must mean the same scores."""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from aligngpt.data.pairs import PairSource
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.parts import PART_PATTERN, PartSummary, ScoresError, write_whole

MANIFEST = "manifest.json"
SCORE = "cosine similarity of image and text features, not scaled"
LEFTOVER_AGE = 60.0
"""Seconds after which a temporary manifest is no other process's work any more."""

_NAMES = {
    "source": "source of pairs",
    "model_fingerprint": "model",
    "preprocessing": "image processor",
    "dtype": "precision",
    "batch_size": "batch size",
    "embeddings": "choice whether embeddings are kept",
    "shards": "number of shards",
    "cut": "way to cut the source into shards",
    "score": "meaning of the score",
}


@dataclass(frozen=True)
class Manifest:
    """What the scores in a folder depend on, and how the job ended.

    Attributes:
        source: kind and fingerprint of the source of pairs.
        shards: how many shards the source has, and so how many parts there will be.
        cut: a SHA-256 of their names and numbers of records: the same source may be cut in another way.
        model: name or folder of the model; the same model may have several.
        model_fingerprint: see `PairScorer.fingerprint`.
        preprocessing: the settings of the model's image processor.
        dtype: precision the model computed with.
        batch_size: distinct images, or distinct captions, encoded together.
        embeddings: whether the parts hold the features.
        score: what the number is.
        finished: how many pairs have a score and how many have none; None until all parts are there.
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
    finished: PartSummary | None = None

    @classmethod
    def of(cls, source: PairSource, scorer: PairScorer, *, batch_size: int, embeddings: bool) -> "Manifest":
        """The manifest of a job that is to begin."""
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
        )

    def write(self, out: Path) -> None:
        """Write it into `out`; several processes may, at the same time.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        content = asdict(self)
        if self.finished is not None:
            content["finished"] |= {"rejected": self.finished.rejected}
        write_whole(out / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())


def read_manifest(out: Path) -> Manifest:
    """What is known of the scores in a folder.

    Raises:
        ScoresError: the folder holds none, or what is there is damaged.
    """
    path = out / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if finished := content.pop("finished"):
            finished = PartSummary(int(finished["scored"]), dict(finished["reasons"]))
        return Manifest(**content, finished=finished)
    except FileNotFoundError as error:
        raise ScoresError(f"{out} holds no scores (there is no {MANIFEST}); run `aligngpt score` first") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScoresError(f"{path} is damaged ({error}); remove {out} and score again") from error


def finished_manifest(out: Path) -> Manifest:
    """The manifest of a folder that has all its scores.

    Raises:
        ScoresError: as `read_manifest`, or the job was not finished.
    """
    manifest = read_manifest(out)
    if manifest.finished is None:
        raise ScoresError(f"{out} is not finished; run the same `aligngpt score` again and it goes on")
    return manifest


def claim(out: Path, manifest: Manifest) -> Manifest:
    """Make `out` the folder of this job, or find that it is already; returns the manifest that is there.

    Raises:
        ScoresError: `out` holds scores of something else.
        OSError: the folder cannot be written.
    """
    _remove_leftovers(out)
    # In this order: another process may write the manifest and then its first part between the two.
    holds_parts = any(out.glob(PART_PATTERN))
    if not (out / MANIFEST).exists():
        if holds_parts:
            raise ScoresError(f"{out} holds parts of scores but no {MANIFEST}; remove it, or choose another folder")
        manifest.write(out)
        return manifest
    found = read_manifest(out)
    if different := [text for name, text in _NAMES.items() if getattr(found, name) != getattr(manifest, name)]:
        raise ScoresError(
            f"{out} holds scores of another {' and another '.join(different)}; choose another folder, or remove it to "
            "score again"
        )
    return found


def finish(out: Path, manifest: Manifest, summary: PartSummary) -> None:
    """Note in the manifest that all parts are there.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    replace(manifest, finished=summary).write(out)


def _remove_leftovers(out: Path) -> None:
    for temporary in out.glob(f".{MANIFEST}.*"):
        with suppress(FileNotFoundError):
            if time.time() - temporary.stat().st_mtime > LEFTOVER_AGE:
                temporary.unlink()
