"""Saved models, loaded and used with transformers' own classes and functions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    pipeline,
)

from aligngpt.model import (
    AlignGPTConfig,
    AlignGPTForConditionalGeneration,
    AlignGPTModel,
    AlignGPTProcessor,
)

TEXTS = ["USER : <image> what colour is the circle ? ASSISTANT :", "USER : describe it ASSISTANT :"]


def assert_same(first: PreTrainedModel, second: PreTrainedModel) -> None:
    expected, found = first.state_dict(), second.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype
        assert torch.equal(tensor, found[name]), name


@pytest.mark.parametrize(
    ("language", "options"),
    [
        ("llama", {}),
        ("llama", {"dtype": torch.bfloat16}),
        ("llama", {"alignment": "none"}),
        ("llama", {"tower": "siglip_full", "num_levels": 3}),
        ("llama_tied", {}),
        ("qwen2", {"dtype": torch.bfloat16, "tower": "dinov2"}),
        ("gemma3", {}),
        ("phi", {}),  # whose head has a bias
        ("gpt_neox", {}),  # whose table is not called embed_tokens
        ("mamba2", {}),
    ],
)
def test_saved_and_loaded_is_bit_for_bit_the_same(
    assembled: Callable, batch_of: Callable, tmp_path: Path, language: str, options: dict[str, Any]
) -> None:
    model, processor = assembled(language, chat_template="plain", **options)
    model.save_pretrained(tmp_path)
    loaded = AlignGPTForConditionalGeneration.from_pretrained(tmp_path)
    assert_same(model, loaded)
    assert loaded.lm_head.weight is not model.lm_head.weight
    tied = bool(model.config.tie_word_embeddings)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    batch = batch_of(processor, TEXTS)
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()


def test_a_tied_head_is_saved_once(assembled: Callable, tmp_path: Path) -> None:
    for language, copies in (("llama_tied", 1), ("llama", 2)):
        model, _ = assembled(language)
        model.save_pretrained(tmp_path / language)
        names = load_file(tmp_path / language / "model.safetensors")
        assert len([name for name in names if "lm_head" in name or "embed_tokens" in name]) == copies


def test_auto_classes_know_the_model(assembled: Callable, batch_of: Callable, tmp_path: Path) -> None:
    model, processor = assembled()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is AlignGPTConfig
    assert type(AutoProcessor.from_pretrained(tmp_path)) is AlignGPTProcessor
    whole: Any = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(whole) is AlignGPTForConditionalGeneration
    assert_same(whole, model)
    body: Any = AutoModel.from_pretrained(tmp_path)
    assert type(body) is AlignGPTModel
    assert_same(body, model.model)
    batch = batch_of(processor, TEXTS)
    assert torch.equal(body(**batch).last_hidden_state, model.model(**batch).last_hidden_state)


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"])
def test_a_device_map_is_followed(
    assembled: Callable, batch_of: Callable, tmp_path: Path, device_map: str | dict
) -> None:
    model, processor = assembled()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, device_map=device_map)
    batch = batch_of(processor, TEXTS)
    found = loaded(**{name: tensor.to(loaded.device) for name, tensor in batch.items()}).logits.cpu()
    torch.testing.assert_close(found, model(**batch).logits, rtol=1e-3, atol=1e-3)


def test_a_checkpoint_without_alignment_gets_a_fresh_module(assembled: Callable, tmp_path: Path) -> None:
    model, _ = assembled()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if "alignment" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    loaded = AlignGPTForConditionalGeneration.from_pretrained(tmp_path)
    levels = loaded.model.alignment.levels
    bound = (6 / (8 + 32)) ** 0.5
    assert 0.9 * bound < levels.abs().max() <= bound
    assert not torch.equal(levels, model.model.alignment.levels)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())


def test_a_new_model_starts_with_a_xavier_table(assembled: Callable) -> None:
    config = assembled()[0].config
    model = AutoModelForImageTextToText.from_config(config)
    bound = (6 / (8 + 32)) ** 0.5
    assert 0.9 * bound < model.model.alignment.levels.abs().max() <= bound


def test_nothing_in_a_saved_model_is_pickled(assembled: Callable, tmp_path: Path) -> None:
    model, processor = assembled()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "aligngpt"


def test_pipeline_answers_as_generate_does(assembled: Callable, asks: Callable, pictures: list, tmp_path: Path) -> None:
    model, processor = assembled("qwen2")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    pipe = pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
    talks = [asks("what colour is it ?", pictures[:1]), asks("how many are there ?", pictures[1:2])]
    answers = [out[0]["generated_text"] for out in pipe(text=talks, generate_kwargs=options, return_full_text=False)]
    for talk, answer in zip(talks, answers, strict=True):
        inputs = processor.apply_chat_template(
            talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        new = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        assert answer == processor.decode(new, skip_special_tokens=True)
    assert answers[0] != answers[1]


def test_the_example_in_the_docstring_runs(assembled: Callable, pictures: list, tmp_path: Path) -> None:
    model, processor = assembled("qwen2")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pictures[0].save(tmp_path / "shape.png")
    source = str(AlignGPTForConditionalGeneration.forward.__doc__).split("```python")[1].split("```")[0]
    lines = [line.strip()[4:] for line in source.splitlines() if line.strip()]
    code = "\n".join(lines).replace("runs/quickstart/model", str(tmp_path))
    code = code.replace("shape.png", str(tmp_path / "shape.png")).replace("**inputs", "**inputs, max_new_tokens=4")
    exec("from PIL import Image\n" + code, {})
