"""The snippets of docs/fine-tuning.md run as they stand, on a tiny model, and train what the page says."""

import importlib.util
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from PIL import Image
from transformers import AutoProcessor

from aligngpt.inference.engine import Engine, Request
from aligngpt.inference.loading import NOT_QUANTISED
from aligngpt.model.adapters import merge_adapter

PAGE = Path(__file__).parents[2] / "docs" / "fine-tuning.md"


def snippet(heading: str) -> str:
    """The Python code below a heading of the page."""
    _, _, section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    (code,) = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], flags=re.DOTALL)
    return str(code)


IMPORTS = snippet("transformers").partition("\n\n")[0] + "\n"
(LAYERS,) = re.findall(r"^layers = .*$", snippet("peft"), flags=re.MULTILINE)


@pytest.fixture
def session(tmp_path: Path, assembled: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of a Python session in a folder with the files of the page, after its first snippet."""
    monkeypatch.chdir(tmp_path)
    model, processor = assembled("qwen2")
    model.bfloat16().save_pretrained("runs/mine/model")  # as with `save_dtype: bfloat16`
    processor.save_pretrained("runs/mine/model")
    Path("images").mkdir()
    generator = np.random.default_rng(0)
    records = []
    for number, answer in enumerate(["red", "a big green circle", "blue", "two <image>", "yes", "no"]):
        Image.fromarray(generator.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(f"images/{number}.png")
        records.append({"image": f"{number}.png", "question": "what colour is it ?", "answer": answer})
    Path("questions.json").write_text(json.dumps(records))
    names: dict[str, Any] = {}
    exec(snippet("Batches"), names)
    return names


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_only_answers_count_in_the_loss(session: dict[str, Any]) -> None:
    processor = session["processor"]
    batch = session["collate"](session["records"][:4])
    placeholders = processor.tokenizer.convert_tokens_to_ids(["<image>", "<align>"])
    assert not torch.isin(batch["labels"], torch.tensor(placeholders)).any()
    assert batch["attention_mask"][:, 0].all() and not batch["attention_mask"].all(), "padded on the right"
    counted = [processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert [text.partition("<|im_end|>")[0] for text in counted[:3]] == ["red", "a big green circle", "blue"]


def test_the_trainer_snippet_trains_and_saves_a_model(session: dict[str, Any]) -> None:
    before = {name: tensor.clone() for name, tensor in _weights("runs/mine/model").items()}
    exec(snippet("transformers"), session)
    found = losses(session["trainer"])
    assert len(found) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in found)
    assert {one.dtype for one in session["model"].parameters()} == {torch.float32}
    saved = AutoProcessor.from_pretrained("runs/trainer/model")
    assert saved.tokenizer.padding_side == "left", "as generation needs it"
    after = _weights("runs/trainer/model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("language_model" in name for name in changed)
    assert any("alignment.gate" in name for name in changed)
    assert not [name for name in changed if "vision_tower" in name or name.endswith("alignment.levels")]


@pytest.mark.medium
def test_the_peft_snippet_trains_adapters_that_the_commands_read(session: dict[str, Any]) -> None:
    exec(IMPORTS + snippet("peft"), session)
    assert {one.dtype for one in session["adapted"].parameters() if one.requires_grad} == {torch.float32}
    changed = [name for name, one in session["adapted"].named_parameters() if "lora_B" in name and one.any()]
    assert len(changed) == 2 * 7
    assert all("language_model" in name for name in changed)
    request = Request.ask("what colour is it ?", Image.open("images/0.png"))
    (answer,) = Engine.load("runs/peft/adapters").answer([request])
    assert answer.alignment_weights is not None
    merge_adapter(Path("runs/peft/adapters"), Path("runs/peft/model"))
    before, after = _weights("runs/mine/model"), _weights("runs/peft/model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 2 * 7 and all("_proj.weight" in name for name in changed)


def test_the_snippet_for_4_bits_quantises_the_language_model_alone(session: dict[str, Any]) -> None:
    exec(IMPORTS + f"from peft import LoraConfig, get_peft_model\n{LAYERS}\n" + snippet("peft in 4 bits"), session)
    quantised = [name for name, one in session["base"].named_modules() if type(one) is Linear4bit]
    assert len(quantised) == 2 * 7
    assert all("language_model" in name for name in quantised)
    assert set(session["quantization"].llm_int8_skip_modules) == set(NOT_QUANTISED)
    session["adapted"](**session["collate"](session["records"][:2])).loss.backward()
    trained = [one for one in session["adapted"].parameters() if one.requires_grad]
    assert all(one.grad is not None and torch.isfinite(one.grad).all() for one in trained)


@pytest.mark.medium
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_the_trl_snippet_trains_adapters(session: dict[str, Any]) -> None:
    exec(f"from peft import LoraConfig\n{LAYERS}\n" + snippet("TRL"), session)
    assert all(math.isfinite(loss) and loss > 0 for loss in losses(session["sft"]))
    assert Path("runs/trl/adapters/adapter_model.safetensors").is_file()


def _weights(folder: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor.float() for name, tensor in load_file(Path(folder) / "model.safetensors").items()}
