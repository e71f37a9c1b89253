"""Models that bring code of their own are refused before any of it could run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aligngpt.checking.for_training import check_for_model
from aligngpt.errors import AlignGPTError
from aligngpt.scoring.dual_encoder.model import DualEncoderError, assemble_dual_encoder
from aligngpt.scoring.encoders import PairScorer, ScorerError, load_image_processor, load_tokenizer

MAP = {"AutoConfig": "own.Own", "AutoModel": "own.Own", "AutoTokenizer": ["own.Own", None]}
TOLD = r"brings code of its own \(auto_map .* never run here"


def with_own_code(source: Path, to: Path, name: str = "config.json", **changes: object) -> Path:
    """A copy of a model whose JSON file with this name refers to a module that leaves a trace when it is run."""
    shutil.copytree(source, to)
    (to / "own.py").write_text(f"from pathlib import Path\nPath({str(to / 'ran')!r}).touch()\nclass Own: pass\n")
    settings = json.loads((to / name).read_text())
    (to / name).write_text(json.dumps(settings | {"auto_map": MAP} | changes))
    return to


def test_a_scorer_with_code_of_its_own_is_refused(scorer_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = with_own_code(scorer_folder("clip"), tmp_path / "own", model_type="made_up")
    with pytest.raises(ScorerError, match=f"the model {folder} {TOLD}"):
        PairScorer.load(folder, device="cpu", dtype="float32")
    assert not (folder / "ran").exists()


def test_code_beside_a_model_that_transformers_knows_is_not_run(
    scorer_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = with_own_code(scorer_folder("clip"), tmp_path / "own")
    scorer = PairScorer.load(folder, device="cpu", dtype="float32")
    assert type(scorer.model).__name__ == "CLIPModel"
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("name", "load", "what"),
    [
        ("tokenizer_config.json", load_tokenizer, "tokenizer"),
        ("preprocessor_config.json", load_image_processor, "image processor"),
    ],
)
def test_an_unknown_class_of_a_tokenizer_or_image_processor_is_refused(
    name: str, load: Callable[[Path], object], what: str, scorer_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    own = {"auto_map": {"AutoTokenizer": ["own.Own", None], "AutoImageProcessor": "own.Own"}}
    changes = {"tokenizer_class": "Own", "image_processor_type": "Own"}
    folder = with_own_code(scorer_folder("clip"), tmp_path / "own", name, **own, **changes)
    # Its type alone would say which class the model's own parts have.
    (folder / "config.json").unlink()
    with pytest.raises(ScorerError, match=f"the {what} of {folder} cannot be loaded"):
        load(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("which", [0, 1])
def test_a_tower_with_code_of_its_own_is_refused(which: int, text_tower: Path, tmp_path: Path) -> None:
    own = with_own_code(text_tower, tmp_path / "own", model_type="made_up")
    towers = [text_tower, text_tower]
    towers[which] = own
    with pytest.raises(DualEncoderError, match=f"the tower {own} {TOLD}"):
        assemble_dual_encoder(*towers)
    assert not (own / "ran").exists()


def test_data_are_not_checked_for_a_model_with_code_of_its_own(text_tower: Path, tmp_path: Path) -> None:
    own = with_own_code(text_tower, tmp_path / "own", model_type="made_up")
    with pytest.raises(AlignGPTError, match=f"the model {own} {TOLD}"):
        check_for_model([tmp_path / "data.json"], str(own))
    assert not (own / "ran").exists()
