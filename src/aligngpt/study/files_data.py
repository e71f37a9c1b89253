"""A study on data of one's own: caption records that were scored with `aligngpt score`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aligngpt.data.records.sample import Sample, to_record
from aligngpt.data.rejects import Rejects
from aligngpt.data.samples.reading import load_samples
from aligngpt.files import atomic_write, sha256_of
from aligngpt.levels.scored_pairs import ScoredPairs
from aligngpt.study.data import Probe, StudyData
from aligngpt.study.pairs import ScoredPair, StudyError
from aligngpt.study.plan import FilesPlan


@dataclass(frozen=True)
class FixedPairs:
    """The same pairs for every share of bad captions."""

    pairs: list[ScoredPair]

    def __call__(self, noise: float) -> list[ScoredPair]:
        return self.pairs


def read_files(plan: FilesPlan, model: dict[str, Any], folder: Path) -> StudyData:
    """The data of a study on files.

    Args:
        plan: names the files.
        model: settings of the model, with both backbones.
        folder: for the files of wrong captions.

    Raises:
        StudyError: a file is missing, a caption has no score, or the model lacks a backbone.
        AlignGPTError: a file cannot be read.
    """
    for name in ("vision_tower", "language_model"):
        if name not in model:
            raise StudyError(f"the plan's model names no {name}; with data of one's own it must")
    root = Path(plan.image_root) if plan.image_root is not None else Path(plan.captions).parent
    pairs = _scored(Path(plan.captions), Path(plan.scores), root)
    return StudyData(
        model=model,
        image_root=root,
        pairs=FixedPairs(pairs),
        questions=_there(plan.questions),
        tests={name: _there(path) for name, path in plan.tests.items()},
        probe=None if plan.probe is None else _exchanged(_there(plan.probe), root, folder),
        facts={"pairs": len(pairs)},
    )


def _there(path: str) -> Path:
    if not Path(path).is_file():
        raise StudyError(f"there is no file {path}, which the plan names")
    return Path(path)


def _samples(path: Path, root: Path) -> list[Sample]:
    with Rejects(None) as rejects:
        return load_samples(path, image_root=root, rejects=rejects, check_images=False)


def _scored(captions: Path, scores: Path, root: Path) -> list[ScoredPair]:
    table = ScoredPairs(scores)
    with captions.open("rb") as file:
        if table.manifest.source["fingerprint"] != sha256_of(file):
            raise StudyError(f"{scores} has the scores of other captions than {captions}; score that file again")
    batches = list(table.batches())
    of_record = dict(
        zip(
            np.concatenate([batch.numbers for batch in batches]).tolist(),
            np.concatenate([batch.scores for batch in batches]).tolist(),
            strict=True,
        )
    )
    pairs = []
    for sample in _samples(captions, root):
        if sample.record not in of_record:
            continue  # It was rejected when the pairs were scored.
        if len(sample.images) != 1:
            raise StudyError(
                f"{captions}: record {sample.record} has {len(sample.images)} pictures; a study takes pairs"
            )
        pairs.append(ScoredPair(str(sample.id), str(sample.images[0]), sample.caption, of_record[sample.record]))
    if len(pairs) < 2:
        raise StudyError(f"{scores} has scores for {len(pairs)} records of {captions}; score that file first")
    return pairs


def _exchanged(captions: Path, root: Path, folder: Path) -> Probe:
    """Right captions, and for each picture the caption of the next one that differs."""
    samples = _samples(captions, root)
    texts = [sample.caption for sample in samples]
    others = [
        next((text for text in texts[place + 1 :] + texts[:place] if text != own), None)
        for place, own in enumerate(texts)
    ]
    if None in others:
        raise StudyError(f"{captions}: all captions are the same, so none can be exchanged")
    wrong = []
    for sample, other in zip(samples, others, strict=True):
        record = to_record(sample)
        record["conversations"][-1]["value"] = other
        wrong.append(record)
    paths = {"right": [to_record(sample) for sample in samples], "wrong": wrong}
    for name, records in paths.items():
        with atomic_write(folder / f"probe-{name}.json") as file:
            json.dump(records, file, ensure_ascii=False)
    return Probe(folder / "probe-right.json", folder / "probe-wrong.json", ("exchanged",) * len(samples))
