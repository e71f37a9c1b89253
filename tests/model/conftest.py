"""Models with unusual language models, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_backbones import save_language_model
from tiny_models import Assembled

from aligngpt.model.assembling import assemble


@pytest.fixture(scope="session")
def with_language(
    tmp_path_factory: pytest.TempPathFactory, tower_folder: Callable[[str], Path]
) -> Callable[..., Assembled]:
    """A model assembled from CLIP and one of the language models of `tiny_backbones`; tests share it."""
    made: dict[tuple[str, torch.dtype], Assembled] = {}
    folders = tmp_path_factory.mktemp("languages")

    def make(name: str, dtype: torch.dtype = torch.float32) -> Assembled:
        if (name, dtype) not in made:
            if not (folders / name).exists():
                save_language_model(folders / name, name)
            made[name, dtype] = assemble(tower_folder("clip"), folders / name, chat_template="plain", dtype=dtype)
        return made[name, dtype]

    return make
