"""A tiny engine and the chats held with it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from aligngpt.chatting.chat import Chat
from aligngpt.inference.engine import Engine, Sampling


@pytest.fixture(scope="module")
def engine(assembled: Callable) -> Iterator[Engine]:
    with Engine(*assembled()) as engine:
        yield engine


@pytest.fixture
def chat(engine: Engine) -> Chat:
    return Chat(engine, Sampling(max_new_tokens=6))


@pytest.fixture
def picture(pictures: list[Image.Image], tmp_path: Path) -> Path:
    pictures[0].save(tmp_path / "my picture.png")
    return tmp_path / "my picture.png"
