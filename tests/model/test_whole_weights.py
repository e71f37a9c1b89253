"""A model whose files lack weights is refused wherever one is loaded, instead of being used with random ones."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from aligngpt.inference.loading import load_model
from aligngpt.inference.requests import EngineError
from aligngpt.model.adapters import AdapterError, load_adapter
from aligngpt.scoring.encoders import PairScorer, ScorerError

Change = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


def changed(folder: Path, to: Path, change: Change) -> Path:
    """A copy of a model folder with other tensors."""
    copy = Path(shutil.copytree(folder, to))
    (weights,) = copy.glob("*.safetensors")
    save_file(dict(change(load_file(weights))), weights, {"format": "pt"})
    return copy


def without(*starts: str) -> Change:
    return lambda tensors: {name: one for name, one in tensors.items() if not name.startswith(starts)}


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As peft names what it wraps."""
    return {
        name.replace("model.multi_modal_projector", "base_model.model.multi_modal_projector"): one
        for name, one in tensors.items()
    }


@pytest.fixture
def model_folder(assembled: Callable, tmp_path: Path) -> Path:
    model, processor = assembled("qwen2")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            renamed,
            r"the model .*other has no weights for model\.multi_modal_projector\..*, and has "
            r"base_model\.model\.multi_modal_projector\..* instead",
        ),
        (without("model.alignment.levels"), r"no weights for model\.alignment\.levels; they would be left random"),
        (without("model.language_model."), r"no weights for lm_head\.weight, model\.language_model\..* and \d+ more"),
    ],
    ids=["renamed", "one", "many"],
)
def test_a_model_that_lacks_weights_is_refused(
    model_folder: Path, tmp_path: Path, change: Change, message: str
) -> None:
    load_model(model_folder, dtype="float32")
    with pytest.raises(EngineError, match=message):
        load_model(changed(model_folder, tmp_path / "other", change), dtype="float32")


def test_a_tied_head_is_not_missing(assembled: Callable, tmp_path: Path) -> None:
    model, processor = assembled("llama_tied")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    assert not any("lm_head" in name for name in load_file(tmp_path / "model" / "model.safetensors"))
    load_model(tmp_path / "model", dtype="float32")


def test_an_adapters_base_that_lacks_weights_is_refused(model_folder: Path, tmp_path: Path) -> None:
    base = changed(model_folder, tmp_path / "base", without("model.multi_modal_projector"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    with pytest.raises(AdapterError, match=r"the base .*base has no weights for model\.multi_modal_projector"):
        load_adapter(adapter)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_scorer_that_lacks_weights_is_refused(
    scorer_folder: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    lost = {"clip": "visual_projection", "siglip": "text_model.head"}[kind]
    folder = changed(scorer_folder(kind), tmp_path / "scorer", without(lost))
    with pytest.raises(ScorerError, match=f"the model .*scorer has no weights for {lost}"):
        PairScorer.load(folder)
