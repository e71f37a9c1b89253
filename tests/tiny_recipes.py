"""A tiny recipe on tiny random backbones, with images, captions with levels and questions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aligngpt.training.recipe import Recipe, make_recipe

ACCUMULATES = {"batch_size": 8, "micro_batch_size": 2}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve images, `captions.json` with levels and `questions.json`, with two questions per image and one without."""
    folder = tmp_path / "data"
    folder.mkdir()
    generator = np.random.default_rng(0)
    captions, questions = [], []
    for place in range(12):
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")
        word = ["red", "green", "blue"][place % 3]
        captions.append({"image": f"{place}.png", "caption": f"a {word} circle", "similarity": place % 8})
        for question, answer in (("what colour is it ?", word), ("is it red ?", "yes" if word == "red" else "no")):
            questions.append({"image": f"{place}.png", "question": question, "answer": answer})
    questions.append({"question": "describe a circle please", "answer": "it is big"})
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "questions.json").write_text(json.dumps(questions))
    return folder


def give_levels(data: Path) -> None:
    """Give the questions levels, as `aligngpt levels` over a mixture does."""
    records = json.loads((data / "questions.json").read_text())
    for place, record in enumerate(records):
        record |= {"similarity": place % 8} if "image" in record else {}
    (data / "questions.json").write_text(json.dumps(records))


@pytest.fixture
def tiny_recipe(tmp_path: Path, data: Path, language_folder: Callable, tower_folder: Callable) -> Callable[..., Recipe]:
    """A recipe of four steps per stage; `pretrain__max_steps=2` replaces a value, None for a section removes it."""

    def make(language: str = "qwen2", **changes: Any) -> Recipe:
        common = {"max_steps": 4, "batch_size": 4, "learning_rate": 0.01, "precision": "float32", "log_steps": 1}
        content: dict[str, Any] = {
            "model": {"vision_tower": str(tower_folder("clip")), "language_model": str(language_folder(language))},
            "pretrain": common
            | {"data": str(data / "captions.json"), "train": ["projector", "level_table"], "chat_template": "plain"},
            "instruct": common
            | {"data": str(data / "questions.json"), "train": ["language_model", "projector", "gate"]},
            "output": str(tmp_path / "run"),
        }
        for name, value in changes.items():
            section, _, field = name.rpartition("__")
            (content[section] if section else content)[field] = value
        return make_recipe({name: value for name, value in content.items() if value is not None})

    return make


@pytest.fixture
def recipe_of(tiny_recipe: Callable[..., Recipe], tmp_path: Path, data: Path) -> Callable[..., Recipe]:
    """Half of the instructions are text only: at some steps one process has images and the other has none."""
    records = json.loads((data / "questions.json").read_text())
    texts = [{"question": f"is it red {number} ?", "answer": "no"} for number in range(len(records) // 2)]
    (data / "questions.json").write_text(json.dumps(records + texts))

    def make(name: str, **changes: Any) -> Recipe:
        # Two processes with two micro-batches each, so that work deferred to the last micro-batch of a step is tested.
        steps = {f"{stage}__{key}": value for stage in ("pretrain", "instruct") for key, value in ACCUMULATES.items()}
        return tiny_recipe(output=str(tmp_path / name), **steps | changes)

    return make
