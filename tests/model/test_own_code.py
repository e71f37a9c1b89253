"""Models that bring code of their own are refused by name, before anything of them is run or asked about."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aligngpt.errors import AlignGPTError
from aligngpt.model.adapters import AdapterError, load_adapter
from aligngpt.model.assembling import assemble
from aligngpt.model.backbones import BackboneError
from aligngpt.model.own_code import refuse_own_code

OWN = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}


def write(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["llama", "made_up", None])
def test_a_model_that_names_code_is_refused(tmp_path: Path, kind: str | None) -> None:
    write(tmp_path, auto_map=OWN, **({} if kind is None else {"model_type": kind}))
    with pytest.raises(AlignGPTError, match=rf"the model {tmp_path} brings code of its own .*model type {kind!r}"):
        refuse_own_code(tmp_path, "the model", AlignGPTError)


def test_old_code_of_a_model_that_transformers_knows_may_stay(tmp_path: Path) -> None:
    refuse_own_code(write(tmp_path, model_type="phi3", auto_map=OWN), "the model", AlignGPTError, unless_known=True)
    write(tmp_path, model_type="made_up", auto_map=OWN)
    with pytest.raises(AlignGPTError, match="choose a model that transformers has a class for"):
        refuse_own_code(tmp_path, "the model", AlignGPTError, unless_known=True)


@pytest.mark.parametrize("deeper", [False, True])
def test_code_of_a_part_without_a_network_in_transformers_is_refused(tmp_path: Path, deeper: bool) -> None:
    part: dict[str, Any] = {"model_type": "blip_text_model", "auto_map": OWN}
    write(tmp_path, model_type="aligngpt", text_config={"text_config": part} if deeper else part)
    with pytest.raises(AlignGPTError, match=r"brings code of its own .*model type 'blip_text_model'"):
        refuse_own_code(tmp_path, "the model", AlignGPTError)
    write(tmp_path, model_type="aligngpt", text_config=part | {"model_type": "llama"})
    refuse_own_code(tmp_path, "the model", AlignGPTError)


def test_a_model_without_code_or_configuration_passes(tmp_path: Path) -> None:
    refuse_own_code(tmp_path, "the model", AlignGPTError)
    refuse_own_code(write(tmp_path, model_type="made_up", text_config={"auto_map": OWN}), "the model", AlignGPTError)
    for damaged in ("{", "null", "[]", '"auto_map"', "[" * 100_000):
        (tmp_path / "config.json").write_text(damaged)
        refuse_own_code(tmp_path, "the model", AlignGPTError)


@pytest.fixture
def named_code(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Lets the configuration of a model folder name code that must not run."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked whether to run it"))

    def change(folder: Path, to: Path, **changes: str) -> Path:
        shutil.copytree(folder, to)
        config = json.loads((to / "config.json").read_text())
        (to / "own.py").write_text("raise SystemExit('the code of the model was run')\n")
        return write(to, **config | {"auto_map": OWN} | changes)

    return change


@pytest.mark.parametrize("part", ["language model", "vision tower"])
def test_a_backbone_with_code_of_its_own_is_refused(
    part: str, language_folder: Callable, tower_folder: Callable, named_code: Callable, tmp_path: Path
) -> None:
    tower, language = tower_folder("clip"), language_folder("llama")
    changed = named_code(language if part == "language model" else tower, tmp_path / "own", model_type="made_up")
    given = (tower, changed) if part == "language model" else (changed, language)
    with pytest.raises(BackboneError, match=f"the {part} {changed} brings code of its own"):
        assemble(*given, chat_template="bare", seed=0)


def test_the_code_of_a_known_kind_of_language_model_is_left_alone(
    language_folder: Callable, tower_folder: Callable, named_code: Callable, tmp_path: Path
) -> None:
    changed = named_code(language_folder("llama"), tmp_path / "own")
    model, _ = assemble(tower_folder("clip"), changed, chat_template="bare", seed=0)
    assert type(model.model.language_model).__module__.startswith("transformers.")
    model.save_pretrained(tmp_path / "saved")
    refuse_own_code(tmp_path / "saved", "the model", AlignGPTError)


def test_a_base_with_code_of_its_own_is_refused(assembled: Callable, named_code: Callable, tmp_path: Path) -> None:
    for part in assembled():
        part.save_pretrained(tmp_path / "base")
    changed = named_code(tmp_path / "base", tmp_path / "own")
    (tmp_path / "adapter").mkdir()
    with pytest.raises(AdapterError, match=f"the base {changed} brings code of its own"):
        load_adapter(tmp_path / "adapter", base=changed)
