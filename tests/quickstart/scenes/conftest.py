import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_material import tiny_material

from aligngpt.quickstart.scenes.files import ScenesFiles
from aligngpt.quickstart.scenes.material import Material
from aligngpt.quickstart.scenes.preparing import Sizes, prepare_scenes

SIZES = Sizes(captions=40, encoder=10, train=12, validation=3, test=20, shift=8)


@pytest.fixture
def make_material() -> Callable[[bool], Material]:
    return tiny_material


@pytest.fixture(scope="session")
def sizes() -> Sizes:
    return SIZES


@pytest.fixture(scope="session")
def scenes(material: Material, tmp_path_factory: pytest.TempPathFactory) -> ScenesFiles:
    """A small prepared folder of the tiny material, with 60 % noise. Not to be changed."""
    return prepare_scenes(tmp_path_factory.mktemp("scenes") / "data", material=material, sizes=SIZES, noise=0.6)


@pytest.fixture
def iconify_folder(tmp_path: Path) -> Path:
    """A package of Iconify's with three icons, one of them under another name, one of them twice as wide as high."""
    folder = tmp_path / "iconify"
    folder.mkdir()
    icons = {
        "prefix": "tiny",
        "width": 10,
        "height": 10,
        "icons": {
            "wolf": {"body": '<rect width="10" height="10" fill="#ff0000"/>'},
            "fox": {"body": '<rect width="20" height="10" fill="#0000ff"/>', "width": 20},
            "broken": {"body": "<rect"},
        },
        "aliases": {"old-wolf": {"parent": "wolf"}},
    }
    (folder / "icons.json").write_text(json.dumps(icons))
    (folder / "chars.json").write_text(json.dumps({"1f43a": "old-wolf", "1f98a": "fox", "1f400": "broken"}))
    return folder
