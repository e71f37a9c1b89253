"""Scoring a file of pairs: streamed, written as it goes, and gone on with after a kill to the same bytes.

What is at work here is the batch: records `k · batch_size` to `(k + 1) · batch_size - 1` are encoded together, always.
A model's numbers depend, in their last digits, on what else is in a batch; so a job that goes on repeats whole batches.
"""

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aligngpt.data.images import ImageError
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples import Sample
from aligngpt.data.sources import read_records, read_samples
from aligngpt.errors import AlignGPTError
from aligngpt.files import atomic_write, sha256_of
from aligngpt.progress import Meter
from aligngpt.scoring.encoders import Features, PairScorer, ScorerError

SCORES, MANIFEST, REJECTS = "scores.jsonl", "manifest.json", "rejects.jsonl"
DIGITS = 6
BATCHES_AHEAD = 2
WORKERS = min(8, os.cpu_count() or 1)


class ScoresError(AlignGPTError):
    """A folder of scores cannot be used."""


@dataclass(frozen=True)
class ScoreSummary:
    """How a scoring job ended: pairs with a score and records without one."""

    scored: int
    rejected: int


@dataclass(frozen=True)
class Manifest:
    """What the scores in a folder depend on, and how the job ended; `finished` is None until it did.

    Attributes:
        source: SHA-256 of the file of pairs.
        model: see `PairScorer.fingerprint`.
        batch_size: records encoded together.
        finished: set when every record was looked at.
    """

    source: str
    model: str
    batch_size: int
    finished: ScoreSummary | None = None


class Batch(NamedTuple):
    """The samples of a run of `batch_size` records, and their pictures on the way, by name."""

    number: int
    samples: list[Sample]
    pictures: dict[str, Future[Tensor]]


def score_file(
    source: Path,
    scorer: PairScorer,
    out: Path,
    *,
    image_root: Path | None = None,
    batch_size: int = 64,
    max_reject_share: float = 0.05,
) -> ScoreSummary:
    """Score every pair of a file, or go on where an earlier call with the same arguments was stopped.

    Writes into `out`: `scores.jsonl` with a line `{"record", "id", "score"}` for each pair, in the order of the source,
    `rejects.jsonl` with the records that have no score and why, and `manifest.json`. A record counts as a pair when it
    has exactly one image; its caption is the assistant's first turn. An image or caption that a batch has several
    times is encoded once. Records that were rejected for their image are tried again when the job is started again.

    Args:
        source: LLaVA-format JSON or JSON lines.
        scorer: the model.
        out: folder of the scores.
        image_root: folder that image paths start from; the file's own when None.
        batch_size: records encoded together, at least 1.
        max_reject_share: share of the records, 0…1, that may be rejected.

    Raises:
        ScoresError: `out` holds scores of another file or model, or was made with another batch size.
        ScorerError: the model gives a score that is not finite.
        SourceError: the file cannot be read.
        TooManyRejects: too large a share of the records cannot be scored; raised as soon as that is certain.
    """
    if batch_size < 1:
        raise ScoresError(f"the batch size must be at least 1, got {batch_size}")
    root = source.parent if image_root is None else image_root
    if not root.is_dir():
        raise ScoresError(f"the image root {root} is not a folder")
    total = sum(1 for _ in read_records(source))
    manifest = Manifest(file_fingerprint(source), scorer.fingerprint, batch_size)
    finished_before = _claim(out, manifest)
    log = _ScoreLog(out / SCORES)
    # Of a job that was stopped, the last batch may be there in part only.
    kept = total if finished_before else log.last_record // batch_size
    log.cut(kept * batch_size)

    def begin(number: int, samples: list[Sample]) -> Batch:
        names = dict.fromkeys(sample.images[0] for sample in samples if sample.record not in log.records)
        return Batch(number, samples, {name: workers.submit(scorer.open_pixels, name, root) for name in names})

    workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="pictures")
    rejects = Rejects(out / REJECTS, max_share=max_reject_share)
    try:
        with Meter("scoring pairs", total, initial=min(kept * batch_size, total), unit="records") as meter:
            batches = (begin(number, samples) for number, samples in _batches(source, batch_size, rejects))
            for batch in _ahead(batches, BATCHES_AHEAD):
                if batch.number < kept and any(map(_is_readable, batch.pictures.values())):
                    # A picture that could not be read before can be read now: from its batch on, all is done anew.
                    _write_manifest(out, manifest)
                    kept = batch.number
                    log.cut(kept * batch_size)
                if batch.number >= kept:
                    # Nothing to load but after such a cut.
                    batch.pictures.update(begin(batch.number, _without(batch.samples, batch.pictures)).pictures)
                usable = _reject_unreadable(batch, rejects)
                rejects.check(total)
                if batch.number >= kept:
                    log.append(usable, _score(scorer, usable, batch.pictures))
                    meter.advance(max(0, min((batch.number + 1) * batch_size, total) - meter.done))
            rejects.check(total)
    finally:
        workers.shutdown(cancel_futures=True)
    summary = ScoreSummary(len(log.records), rejects.count)
    _write_manifest(out, replace(manifest, finished=summary))
    return summary


def file_fingerprint(path: Path) -> str:
    """The SHA-256 of a file's content.

    Raises:
        ScoresError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return sha256_of(file)
    except OSError as error:
        raise ScoresError(f"{path} cannot be read: {error.strerror or error}") from error


def read_manifest(out: Path) -> Manifest:
    """What is known of the scores in a folder.

    Raises:
        ScoresError: the folder holds none, or what is there is damaged.
    """
    path = out / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        finished = content.pop("finished")
        return Manifest(**content, finished=ScoreSummary(**finished) if finished else None)
    except FileNotFoundError as error:
        raise ScoresError(f"{out} holds no scores (there is no {MANIFEST}); run `aligngpt score` first") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScoresError(f"{path} is damaged ({error}); remove {out} and score again") from error


def _write_manifest(out: Path, manifest: Manifest) -> None:
    with atomic_write(out / MANIFEST) as file:
        json.dump(asdict(manifest), file, indent=2)
        file.write("\n")


def _claim(out: Path, manifest: Manifest) -> bool:
    """Make `out` the folder of this job, or find that it is already; returns whether the job was finished."""
    scores = out / SCORES
    if scores.exists() and scores.stat().st_size:
        found = read_manifest(out)
        names = {"source": "file of pairs", "model": "model or precision", "batch_size": "batch size"}
        if different := [text for name, text in names.items() if getattr(found, name) != getattr(manifest, name)]:
            raise ScoresError(
                f"{out} holds scores of another {' and another '.join(different)}; choose another folder, or remove it "
                "to score again"
            )
        if found.finished:
            return True
    _write_manifest(out, manifest)
    return False


class _ScoreLog:
    """`scores.jsonl`: lines in the order of the records, whole up to where it was last cut or appended to.

    Attributes:
        records: those that have a score.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self.records: set[int] = set()
        self._read(None)

    @property
    def last_record(self) -> int:
        """The last record that has a score; 0 when none has."""
        return max(self.records, default=0)

    def cut(self, record: int) -> None:
        """Forget the scores of `record` and all after it, and whatever is torn."""
        size = self._read(record)
        if size < self.path.stat().st_size:
            os.truncate(self.path, size)

    def append(self, samples: list[Sample], scores: Features) -> None:
        """Write a batch and hand it to the operating system, so that a kill takes no more than the next one."""
        lines = [
            json.dumps({"record": sample.record, "id": sample.id, "score": round(float(score), DIGITS)})
            for sample, score in zip(samples, scores, strict=True)
        ]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
        self.records.update(sample.record for sample in samples)

    def _read(self, end: int | None) -> int:
        """Fill `records` with what stands before `end` or the first torn line; returns the length of that in bytes."""
        self.records, size = set(), 0
        with self.path.open("rb") as file:
            for line in file:
                record = parse_line(line)
                if record is None or (end is not None and record[0] >= end):
                    break
                self.records.add(record[0])
                size += len(line)
        return size


def parse_line(line: bytes) -> tuple[int, float] | None:
    """Record and score in a line of `scores.jsonl`; None when the line is torn."""
    try:
        content = json.loads(line)
        return (int(content["record"]), float(content["score"])) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def _batches(source: Path, batch_size: int, rejects: Rejects) -> Iterator[tuple[int, list[Sample]]]:
    """The pairs of a file by number of their batch; batches without any are left out."""
    pairs = (sample for sample, _ in read_samples(source, rejects) if _is_pair(sample, rejects))
    for number, samples in groupby(pairs, key=lambda sample: sample.record // batch_size):
        yield number, list(samples)


def _is_pair(sample: Sample, rejects: Rejects) -> bool:
    if len(sample.images) != 1:
        rejects.add(sample.record, sample.id, "image_count", f"{len(sample.images)} images; a pair has exactly one")
    return len(sample.images) == 1


def _ahead(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """The same batches, begun `count` ahead: pictures are opened while the model computes."""
    waiting: deque[Batch] = deque()
    for batch in batches:
        waiting.append(batch)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def _without(samples: list[Sample], names: Mapping[str, object]) -> list[Sample]:
    return [sample for sample in samples if sample.images[0] not in names]


def _is_readable(picture: Future[Tensor]) -> bool:
    """Waits for the picture."""
    return picture.exception() is None


def _reject_unreadable(batch: Batch, rejects: Rejects) -> list[Sample]:
    """The samples of a batch whose pictures were not found unusable; those of the others go to `rejects`."""
    usable = []
    for sample in batch.samples:
        picture = batch.pictures.get(sample.images[0])
        error = picture.exception() if picture is not None else None
        if isinstance(error, ImageError):
            rejects.add(sample.record, sample.id, error.reason, str(error))
        elif error is not None:
            raise error
        else:
            usable.append(sample)
    return usable


def _score(scorer: PairScorer, samples: list[Sample], pictures: Mapping[str, Future[Tensor]]) -> Features:
    """The scores of a batch, `(samples,)`; each image and each caption is encoded once."""
    if not samples:
        return np.empty(0, dtype=np.float32)
    names = list(dict.fromkeys(sample.images[0] for sample in samples))
    captions = list(dict.fromkeys(sample.caption for sample in samples))
    images = scorer.pixel_features(torch.cat([pictures[name].result() for name in names]))
    texts = scorer.text_features(captions)
    image_of = [names.index(sample.images[0]) for sample in samples]
    text_of = [captions.index(sample.caption) for sample in samples]
    scores = np.einsum("pd,pd->p", images[image_of], texts[text_of])
    if not np.isfinite(scores).all():
        wrong = samples[int(np.argmin(np.isfinite(scores)))]
        raise ScorerError(
            f"the model's score of record {wrong.record} (id {wrong.id}) is not a finite number; its weights are "
            "damaged, or it needs the precision float32"
        )
    return scores
