"""Fixtures: a tiny model folder, records of two kinds, and inspecting one with the other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aligngpt.inspecting.inspecting import Written, inspect_model


@pytest.fixture(scope="session")
def save_model(assembled: Callable, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a tiny model with these options of `assemble`."""

    def make(**options: Any) -> Path:
        folder = tmp_path_factory.mktemp("models") / "tiny"
        for part in assembled(**options):
            part.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def model_folder(save_model: Callable[..., Path]) -> Path:
    return save_model()


@pytest.fixture
def write_records(tmp_path: Path) -> Callable[..., Path]:
    """JSON lines of questions about images of their own, with these fields besides, or their values by index."""

    def make(count: int = 6, name: str = "data.jsonl", **fields: Any) -> Path:
        generator = np.random.default_rng(3)
        lines = []
        for index in range(count):
            pixels = generator.integers(0, 256, (32, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{index}.png")
            record = {"id": f"r{index}", "image": f"{index}.png", "question": "how many ?", "answer": "two red"}
            own = {key: value(index) if callable(value) else value for key, value in fields.items()}
            lines.append(json.dumps({k: v for k, v in (record | own).items() if v is not None}) + "\n")
        path = tmp_path / name
        path.write_text("".join(lines), encoding="utf-8")
        return path

    return make


@pytest.fixture
def inspect(model_folder: Path, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], str, Written]]:
    """Inspect the tiny model, or another; returns the numbers, the page, and what is told."""

    def call(data: Path, model: Path = model_folder, **options: Any) -> tuple[dict[str, Any], str, Written]:
        settings = {"device": "cpu", "precision": "float32"} | options
        written = inspect_model(model, data, tmp_path / "out" / "page.html", **settings)
        numbers = json.loads(written.numbers.read_text(encoding="utf-8"))
        return numbers, written.page.read_text(encoding="utf-8"), written

    return call
