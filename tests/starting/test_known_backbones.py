"""The sizes of listed backbones are those that were published."""

from pathlib import Path

import pytest
import torch
from full_size import VISION_TOWERS as FULL_SIZE_TOWERS
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from aligngpt.starting.known_backbones import LANGUAGE_MODELS, VISION_TOWERS, near_name, write_stand_in

PARAMETERS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "lmsys/vicuna-7b-v1.5": 6_738_415_616,
    "lmsys/vicuna-13b-v1.5": 13_015_864_320,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "microsoft/phi-2": 2_779_683_840,
    "google/gemma-7b": 8_537_680_896,
}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_language_model_has_its_published_size_and_counts_tokens(name: str, tmp_path: Path) -> None:
    folder = write_stand_in(tmp_path / "model", name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    assert sum(one.numel() for one in model.parameters()) == pytest.approx(PARAMETERS[name], rel=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer("abcdefg", add_special_tokens=False)["input_ids"]) == 3
    assert len(tokenizer("日本語\n", add_special_tokens=False)["input_ids"]) == 4


@pytest.mark.parametrize("name", sorted(VISION_TOWERS.keys() & FULL_SIZE_TOWERS.keys()))
def test_a_vision_tower_has_its_published_sizes(name: str, tmp_path: Path) -> None:
    config, known = AutoConfig.from_pretrained(write_stand_in(tmp_path / "tower", name)), FULL_SIZE_TOWERS[name]()
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "image_size", "patch_size"):
        assert getattr(config, key) == getattr(known, key)


def test_near_names_are_found_without_their_owner() -> None:
    assert near_name("vicuna-7b-v15", LANGUAGE_MODELS) == "lmsys/vicuna-7b-v1.5"
    assert near_name("something else", LANGUAGE_MODELS) is None
