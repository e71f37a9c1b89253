"""Reference values from the published AlignGPT code, if present beside the checkout or at ALIGNGPT_GOLDEN."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from aligngpt.model.foreign.conversion import convert, to_original

HERE = Path(__file__)
GOLDEN = Path(os.environ.get("ALIGNGPT_GOLDEN", HERE.parents[3] / "shared" / "golden"))

pytestmark = pytest.mark.skipif(not (GOLDEN / "cases.safetensors").is_file(), reason=f"{GOLDEN} does not exist")


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_golden", HERE.with_name("check_golden.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_golden"] = module
    spec.loader.exec_module(module)
    return module


def test_the_published_numbers_are_reproduced(checker: ModuleType) -> None:
    comparisons = list(checker.compare(GOLDEN))
    assert [one for one in comparisons if not one.holds] == []
    cases = {one.case.partition(" ")[0] for one in comparisons}
    assert cases >= {"pretrain", "instruct_equal", "instruct_ragged", "instruct_mixed", "inference_0", "inference_1"}
    assert {one.what for one in comparisons} == {*checker.TOLERANCES, "greedy ids"}


def test_a_changed_weight_is_noticed(checker: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    load = checker.load_model

    def changed(folder: Path) -> object:
        model = load(folder)
        model.model.alignment.levels.data[-1] += 0.01
        return model

    monkeypatch.setattr(checker, "load_model", changed)
    assert any(not one.holds for one in checker.compare(GOLDEN))


@pytest.mark.medium
def test_the_program_says_what_it_compared() -> None:
    done = subprocess.run(
        [sys.executable, HERE.with_name("check_golden.py"), GOLDEN], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ok   pretrain: loss" in done.stdout


def test_the_checkpoint_goes_back_exactly(tmp_path: Path, language_folder: Callable[[str], Path]) -> None:
    source = GOLDEN / "original_checkpoint"
    convert(source, tmp_path / "ours", vision_tower=GOLDEN / "vision_tower", tokenizer=language_folder("llama"))
    to_original(tmp_path / "ours", tmp_path / "back", vision_tower="vision_tower")
    theirs = torch.load(source / "pytorch_model.bin", weights_only=True)
    back = load_file(tmp_path / "back" / "model.safetensors")
    computed = {name for name in theirs if name.endswith(("inv_freq", "position_ids"))}
    assert back.keys() == theirs.keys() - computed
    # The fixtures' own tokenizer has more tokens than their model, so another one is used.
    assert all(torch.equal(tensor[: len(theirs[name])], theirs[name]) for name, tensor in back.items())
