"""A study on clip art: captions that are wrong as people's are, and questions from an independent description."""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aligngpt.alignment.levels import roc_auc
from aligngpt.files import atomic_write
from aligngpt.quickstart.backbones import prepare_text_tower, prepare_vision_tower
from aligngpt.quickstart.clipart.entries import Entry, read_entries
from aligngpt.quickstart.clipart.packages import ClipartError, find_clipart
from aligngpt.quickstart.clipart.pictures import SIDE
from aligngpt.quickstart.clipart.preparing import ClipartFiles, prepare_clipart
from aligngpt.quickstart.clipart.questions import Others, write_questions
from aligngpt.scoring.dual_encoder.fit import train_dual_encoder
from aligngpt.study.caption_scores import score_captions
from aligngpt.study.data import Probe, StudyData
from aligngpt.study.files_data import FixedPairs
from aligngpt.study.language_model import END, Text, prepare_language_model
from aligngpt.study.pairs import ScoredPair
from aligngpt.study.plan import ClipartPlan

VISION_LAYERS = 8
"""Layers, of 12, of the vision tower that the dual encoder keeps; the last ones were tuned for saliency."""

QUESTIONS_READ = 8
"""Questions of each kind about each description that the language model reads, with other wrong answers each."""


def prepare_clipart_data(plan: ClipartPlan, model: dict[str, Any], folder: Path) -> StudyData:
    """Prepare the clip art, train the dual encoder and the language model, and score all titles; each step once.

    Args:
        plan: where the clip art is, and the seed.
        model: settings of the model; backbones that it names are used as they are.
        folder: for everything that is made.

    Raises:
        ClipartError: the clip art is missing or too little.
        AlignGPTError: a step cannot be done.
    """
    source = find_clipart(None if plan.folder is None else Path(plan.folder))
    files = prepare_clipart(folder / "clipart", source, seed=plan.seed)
    backbones = folder / "backbones"
    tower = prepare_vision_tower(backbones, image_size=SIDE)
    manifest = json.loads((files.folder / "manifest.json").read_text(encoding="utf-8"))
    # With other drawings or another seed, nothing that was made before is used again.
    work = folder / f"of-{_key(manifest['made_from'])}"
    encoder = work / f"dual-encoder-{plan.encoder}"
    if not encoder.is_dir():
        train_dual_encoder(
            files.encoder_captions(plan.encoder),
            tower,
            prepare_text_tower(backbones),
            encoder,
            vision_layers=VISION_LAYERS,
            image_pooling="mean",
            seed=plan.seed,
        )
    entries = read_entries(files.entries("captions"))
    scores = score_captions(
        [entry.caption_record() for entry in entries], encoder, work / f"scored-{plan.encoder}", files.folder
    )
    probe = _probe(files, plan, encoder, work / f"probe-{plan.probe}-{plan.encoder}")
    named = {"vision_tower": str(tower)} | model
    if "language_model" not in named:
        read = read_entries(files.entries("encoder"))
        settings = plan.language_model
        made = prepare_language_model(
            work / f"language-model-{_key(settings.model_dump())}", texts_of(read, plan.seed), settings, seed=plan.seed
        )
        named["language_model"] = str(made)
    return StudyData(
        model=named,
        image_root=files.folder,
        pairs=FixedPairs([_pair(entry, float(score)) for entry, score in zip(entries, scores, strict=True)]),
        questions=files.questions("train"),
        tests={"test": files.questions("test")},
        probe=probe,
        facts={
            "clipart": {name: value for name, value in manifest.items() if name not in ("made_from", "files")},
            "auc": _auc(entries, scores),
        },
    )


def texts_of(entries: Sequence[Entry], seed: int) -> Iterator[Text]:
    """Description, question and answer for the language model; both empty for titles and descriptions alone.

    Args:
        entries: pictures that neither pre-training, instruction tuning nor a test shows.
        seed: of the questions.
    """
    for entry in entries:
        yield Text(entry.title)
        yield Text(entry.description)
    for question in write_questions(entries, QUESTIONS_READ, random.Random(f"{seed}/language model")):
        yield Text(question.entry.description, ((f" {question.text}", f" {question.answer}{END}"),))


def _key(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _pair(entry: Entry, score: float) -> ScoredPair:
    return ScoredPair(entry.id, entry.image, entry.title, score, float(entry.agrees), entry.kind)


def _auc(entries: Sequence[Entry], scores: NDArray[np.float64]) -> dict[str, float]:
    """Area under the ROC curve of titles that agree against those that do not, for all and by kind."""
    agree = np.array([entry.agrees for entry in entries])
    kinds = np.array([entry.kind for entry in entries])
    found = {}
    for name in ("all", *sorted(set(kinds[~agree]))):
        compared = agree | (kinds == name) | (name == "all")
        if agree.any() and not agree[compared].all():
            found[str(name)] = roc_auc(scores[compared], agree[compared])
    return found


def _probe(files: ClipartFiles, plan: ClipartPlan, encoder: Path, folder: Path) -> Probe:
    """Descriptions of test pictures, and for each the description of another one, with the dual encoder's scores."""
    rng = random.Random(f"{plan.seed}/probe")
    entries = read_entries(files.entries("test"))
    others = Others(entries)
    right: list[dict[str, Any]] = []
    wrong: list[dict[str, Any]] = []
    kinds: list[str] = []
    for entry in rng.sample(entries, len(entries)):
        hard = rng.randrange(2)
        other = others.draw(entry, 1, rng, hard=hard) if entry.is_named else None
        if other is None or len(right) == plan.probe:
            continue
        right.append(entry.caption_record(entry.description))
        wrong.append(entry.caption_record(other[0].description))
        kinds.append("same-folder" if other[0].folder == entry.folder else "other-folder")
    if not right:
        raise ClipartError(f"none of the {len(entries)} test drawings has another one to exchange descriptions with")
    scores = []
    for which, records in (("right", right), ("wrong", wrong)):
        with atomic_write(folder / f"{which}.json") as file:
            json.dump(records, file, ensure_ascii=False)
        scores.append(tuple(score_captions(records, encoder, folder / f"scored-{which}", files.folder).tolist()))
    return Probe(folder / "right.json", folder / "wrong.json", tuple(kinds), *scores)
