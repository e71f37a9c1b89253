"""Fixtures: files of questions with images, a tiny model folder, and an engine that recognises the image shown."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from aligngpt.evaluation import results_folder
from aligngpt.inference.engine import Answer, Engine, Request, Sampling

STEP = 20


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use float32 for `auto`, which differs between CPUs, since in bfloat16 an answer depends on its batch."""
    for module in ("inference.loading", "evaluation.accuracy"):
        monkeypatch.setattr(f"aligngpt.{module}.resolve_dtype", lambda *_: torch.float32)


@pytest.fixture(scope="session")
def model_folder(assembled: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    for part in assembled():
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def write_questions(tmp_path: Path) -> Callable[..., Path]:
    """Questions about numbered images: the answer is the number that `watching` reads from the image."""

    def make(count: int = 12, name: str = "questions.jsonl", **changes: dict[str, Any]) -> Path:
        records = []
        for index in range(count):
            Image.new("RGB", (32, 32), (STEP * (index % 12), 0, 0)).save(tmp_path / f"{index}.png")
            question = "how many are there ?" + " please" * (index % 3)
            kind = "even" if index % 2 == 0 else "odd"
            record = {"id": f"q{index}", "image": f"{index}.png", "question": question, "answer": str(index % 12)}
            records.append(record | {"question_type": kind} | changes.get(f"at_{index}", {}))
        source = tmp_path / name
        source.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return source

    return make


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Make every engine answer with the number of the image shown; returns the list that collects the requests."""
    asked: list[Request] = []

    def answer(self: Engine, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        asked.extend(requests)
        numbers = [str(round(one.images[0].getpixel((0, 0))[0] / STEP)) if one.images else "none" for one in requests]
        return [Answer(number, 1, True, (0.25, 0.75)) for number in numbers]

    monkeypatch.setattr(Engine, "answer", answer)
    return asked


@pytest.fixture
def nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after whose call loading a model fails the test."""

    def load(*_: object, **__: object) -> None:
        pytest.fail("the model was loaded")

    return lambda: monkeypatch.setattr(Engine, "load", load)


HOLD = """
import sys
sys.argv = ["aligngpt", *sys.argv[1:]]
from aligngpt.locks import owned_folder
with owned_folder(sys.argv[1], "train"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], AbstractContextManager[None]]:
    """A context in which another process holds a folder, for longer than benchmarks wait."""
    monkeypatch.setattr(results_folder, "PATIENCE", 0.1)

    @contextmanager
    def hold(folder: Path) -> Iterator[None]:
        command = [sys.executable, "-c", HOLD, str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            try:
                yield
            finally:
                other.kill()

    return hold
