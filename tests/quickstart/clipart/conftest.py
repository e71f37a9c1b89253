"""A small invented library of drawings, laid out as Debian's packages unpack it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_clipart import add_drawing, tiny_library


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder with the empty folders `png` and `svg`."""
    for kind in ("png", "svg"):
        (tmp_path / "library" / kind).mkdir(parents=True)
    return tmp_path / "library"


@pytest.fixture
def add(library: Path) -> Callable[..., None]:
    """Adds a drawing to the library; see `add_drawing`."""

    def make(path: str, title: str, keywords: Sequence[str] = (), **more: object) -> None:
        add_drawing(library, path, title, keywords, **more)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of 60 drawings in four folders. Not to be changed."""
    return tiny_library(tmp_path_factory.mktemp("many"))
