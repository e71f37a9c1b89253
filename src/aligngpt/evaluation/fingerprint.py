"""The fingerprint of an evaluation: answers are kept only for the same model, questions and images."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from aligngpt.data.records.sample import Sample
from aligngpt.evaluation.questions import Questions
from aligngpt.model.adapters import is_adapter, named_base

WEIGHTS = (".safetensors", ".bin")
SETTINGS = (".json", ".jinja", ".txt", ".model")
"""Suffixes of a model's other files: configurations, chat templates, tokenizers."""


def fingerprint_of(
    model: str | Path,
    base: str | Path | None,
    questions: Path,
    source: Questions,
    samples: Sequence[Sample],
    shown: Sequence[tuple[str, ...]],
) -> str:
    """SHA-256 of all settings that affect the answers, except the precision.

    Args:
        model: folder or hub name.
        base: base model of an adapter folder; the one that the adapter names when None.
        questions: the file of questions.
        source: what was read from it.
        samples: the questions that are asked.
        shown: the images shown with each.

    Raises:
        AdapterError: an adapter folder names no base.
    """
    if base is None and is_adapter(model):
        base = named_base(Path(model))
    loaded = [[str(source), *_model_state(Path(source))] for source in (model, base) if source is not None]
    # The content of an archive's images is part of it; that of image files is not, only their names.
    state = [] if source.state is None else [source.state]
    place = [str(questions.resolve()), str(source.root.resolve()), *state]
    digest = hashlib.sha256(json.dumps([*loaded, *place]).encode())
    for sample, images in zip(samples, shown, strict=True):
        digest.update(repr((sample.record, sample.turns, images, *sample.accepted)).encode())
    return digest.hexdigest()


def state_of_model(model: Path) -> str | None:
    """SHA-256 of the state of a model folder: of its weights the sizes and times, of its settings the contents.

    Returns:
        None for a model of the hub.
    """
    return hashlib.sha256(json.dumps(_model_state(model)).encode()).hexdigest() if model.is_dir() else None


def _model_state(model: Path) -> list[list[str | int]]:
    """The state of a local model's files; empty for a model of the hub.

    Weights are too large to read: their sizes and modification times tell that the model was trained again. Of the
    configuration, the preprocessing, the tokenizer and the chat template, the contents count.
    """
    state: list[list[str | int]] = []
    for path in sorted(model.iterdir()) if model.is_dir() else ():
        if not path.is_file():
            continue
        if path.suffix in WEIGHTS:
            state.append([path.name, path.stat().st_size, path.stat().st_mtime_ns])
        elif path.suffix in SETTINGS and not path.name.endswith(".index.json"):
            state.append([path.name, hashlib.sha256(path.read_bytes()).hexdigest()])
    return state
