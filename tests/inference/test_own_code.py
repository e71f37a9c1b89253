"""Code that a model brings is never run, nor is anybody asked whether to run it: such a model is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aligngpt.exporting.llava import export_llava
from aligngpt.exporting.loading import ExportError
from aligngpt.inference.engine import Engine, EngineError

CODE = "raise SystemExit('the code of the model was run')\n"
NAMED = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoModelForImageTextToText": "own.Model"}


def give_own_code(folder: Path, **changes: str) -> Path:
    """Let the configuration of a model folder name code in it."""
    (folder / "own.py").write_text(CODE)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": NAMED} | changes))
    return folder


@pytest.fixture
def folder(assembled: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked whether to run it"))
    for part in assembled():
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", ["alignment_gpt_own", None])
def test_the_engine_refuses_it(folder: Path, kind: str | None) -> None:
    give_own_code(folder, **({} if kind is None else {"model_type": kind}))
    with pytest.raises(EngineError, match=rf"the model {folder} brings code of its own \(auto_map .* never run here"):
        Engine.load(folder, device="cpu")


def test_export_refuses_it_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    give_own_code(folder)
    with pytest.raises(ExportError, match=f"the model {folder} brings code of its own"):
        export_llava(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_code_of_the_language_model_that_ours_was_made_of_does_not_matter(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["auto_map"] = NAMED
    path.write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE)
    Engine.load(folder, device="cpu").close()
