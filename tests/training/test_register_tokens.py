"""A vision tower with register tokens: training, cached features, saving, loading and answering."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from aligngpt.training.recipe import Recipe
from aligngpt.training.run import train
from aligngpt.training.stage import model_folder


@pytest.fixture
def recipe(
    tiny_recipe: Callable, tower_folder: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Recipe]:
    """Two steps per stage, in a folder `name`; features are cached in the test's own cache."""
    monkeypatch.setenv("ALIGNGPT_CACHE", str(tmp_path / "cache"))

    def make(name: str, **changes: Any) -> Recipe:
        steps = {"pretrain__max_steps": 2, "instruct__max_steps": 2}
        tower = {"model__vision_tower": str(tower_folder("dinov2_registers"))}
        return tiny_recipe("llama", **steps, **tower, output=str(tmp_path / name), **changes)

    return make


@pytest.mark.medium
def test_it_is_trained_saved_loaded_and_asked(
    recipe: Callable[..., Recipe], asks: Callable, pictures: list[Image.Image], tmp_path: Path
) -> None:
    kept = recipe("kept", pretrain__cache_features=True, instruct__cache_features=True)
    assert [result.steps for result in train(kept)] == [2, 2]
    without = recipe("without")
    train(without)
    features = [load_file(path)["features"] for path in (tmp_path / "cache").rglob("*.safetensors")]
    assert features and {tuple(one.shape) for one in features} == {(16, 24)}
    first, second = (load_file(model_folder(one) / "model.safetensors") for one in (kept, without))
    assert all(torch.allclose(tensor, second[name], atol=1e-5) for name, tensor in first.items())

    model = AutoModelForImageTextToText.from_pretrained(model_folder(kept)).eval()
    processor = AutoProcessor.from_pretrained(model_folder(kept))
    assert (model.config.vision_register_tokens, model.config.image_seq_length) == (4, 16)
    inputs = processor.apply_chat_template(
        asks("is it red ?", [pictures[0]]),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    # Greedy, token by token, without a cache and with the tower's patch features.
    with torch.no_grad():
        states = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
        ids = inputs["input_ids"]
        while ids.shape[1] < answer.shape[1]:
            logits = model(input_ids=ids, vision_features=states[:, 5:], use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(ids, answer)
