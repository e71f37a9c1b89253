"""A language model in 4 bits under adapters: smaller, nearly equal, and in full precision in the stage's output."""

import sys
from collections.abc import Callable

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora.bnb import Linear4bit
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from aligngpt.errors import AlignGPTError
from aligngpt.model.packing.leaks import can_pack
from aligngpt.training.distributed.fsdp import check_sharding
from aligngpt.training.dry_run import plan
from aligngpt.training.recipe import LoraRecipe, Recipe, RecipeError
from aligngpt.training.run import train
from aligngpt.training.setup import quantization as quantizing
from aligngpt.training.setup.freezing import freeze_all_but
from aligngpt.training.setup.loading import load_model
from aligngpt.training.setup.lora import MARK, add_lora
from aligngpt.training.setup.parameter_summary import parts_of
from aligngpt.training.setup.quantization import quantize_language_model
from aligngpt.training.setup.row_attention import check_rows_can_branch
from aligngpt.training.stage import base_folder, model_folder

CPU = torch.device("cpu")


def test_four_bits_are_half_a_byte_and_nearly_the_same(assembled: Callable, batch_of: Callable) -> None:
    model, processor = assembled("llama_wide", chat_template="plain")
    batch = batch_of(processor, ["USER : describe it ASSISTANT :"])
    expected, sizes = model(**batch).logits, {name: one.numel() for name, one in model.named_parameters()}
    quantize_language_model(model, CPU, torch.float32)
    for name, parameter in model.named_parameters():
        small = ".layers." in name and name.endswith("proj.weight") and "vision" not in name
        assert parameter.numel() == (sizes[name] // 2 if small else sizes[name]), name
    found = model(**batch).logits
    counted = torch.isfinite(expected)
    similar = torch.nn.functional.cosine_similarity(found[counted], expected[counted], dim=0)
    assert 0.9 < similar < 0.9999


def test_the_table_of_parts_counts_numbers_not_bytes(tiny_recipe: Callable[..., Recipe], assembled: Callable) -> None:
    model, _ = assembled("llama_wide")
    stage = tiny_recipe("llama_wide").instruct
    expected = parts_of(model, stage)
    quantize_language_model(model, CPU, torch.float32)
    assert [row.parameters for row in parts_of(model, stage)] == [row.parameters for row in expected]


def test_a_plan_counts_half_a_byte_a_weight(tiny_recipe: Callable[..., Recipe]) -> None:
    memory = {}
    for bits in (None, 4):
        recipe = tiny_recipe("llama_wide", pretrain=None, instruct__lora={"rank": 4, "bits": bits})
        memory[bits] = plan(recipe)[0].memory.weights
    # Two layers of four attention matrices (keys and values half as wide) and three of the MLP, in single precision.
    weights = 2 * (3 * 64 * 64 + 3 * 64 * 128)
    assert memory[None] - memory[4] == round((4 - (0.5 + (1 + 4 / 256) / 64)) * weights)


def test_its_adapters_are_those_for_four_bits(assembled: Callable) -> None:
    model, _ = assembled("llama_wide")
    quantize_language_model(model, CPU, torch.float32)
    add_lora(model, LoraRecipe(rank=4), seed=0)
    assert sum(isinstance(module, Linear4bit) for module in model.modules()) == 2 * 7


GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_it_packs_in_whatever_precision_it_multiplies(
    tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setenv("ALIGNGPT_DEVICE", device)
    recipe = tiny_recipe("llama_wide", pretrain=None, instruct__lora={"rank": 4, "bits": 4})
    for precision in (torch.float32, torch.bfloat16):
        model, _ = load_model(recipe, "instruct", bits_in=precision)
        assert {parameter.device.type for parameter in model.parameters()} == {device}
        assert can_pack(model.model.language_model, recipe.instruct.max_length)
        check_rows_can_branch(model, recipe.instruct.model_copy(update={"questions_per_prefix": 8}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stage_trains_over_four_bits_and_leaves_full_precision(
    tiny_recipe: Callable[..., Recipe], precision: str
) -> None:
    merge = precision == "float32"
    lora = {"rank": 4, "bits": 4, "merge": merge}
    recipe = tiny_recipe("llama_wide", pretrain=None, instruct__lora=lora, instruct__precision=precision)
    result = train(recipe)[0]
    assert result.steps == 4
    left = load_file((model_folder(recipe) if merge else base_folder(recipe)) / "model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in left.values())
    assert not any(MARK in name or "quant" in name for name in left)
    model = AutoModelForImageTextToText.from_pretrained(model_folder(recipe))
    assert torch.isfinite(next(model.parameters())).all()


def test_gradients_are_those_of_the_unpacked_weights(assembled: Callable, batch_of: Callable) -> None:
    """Even after an evaluation, in which bitsandbytes would otherwise repack the weights."""
    model, processor = assembled("llama_wide", chat_template="plain")
    quantize_language_model(model, CPU, torch.float32)
    unpacked, _ = assembled("llama_wide", chat_template="plain")
    for name, module in model.model.language_model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            unpacked.model.language_model.get_submodule(name).weight.data = weight
    batch = batch_of(processor, ["USER : <image> what colour is the circle ? ASSISTANT : red"])
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, :-1] = -100
    with torch.no_grad():
        model.eval()(**batch)
    losses, gradients = [], []
    for one in (model, unpacked):
        add_lora(one, LoraRecipe(rank=4), seed=0)
        freeze_all_but(one, ("language_model", "projector"))
        loss = one.train()(**batch).loss
        loss.backward()
        losses.append(loss)
        gradients.append({name: value.grad for name, value in one.named_parameters() if value.requires_grad})
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)
    assert gradients[0]["model.multi_modal_projector.linear_1.weight"].abs().max() > 0


def test_without_bitsandbytes_it_says_what_to_do(assembled: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    model, _ = assembled("llama_wide")
    with pytest.raises(AlignGPTError, match="pip install bitsandbytes"):
        quantizing.quantize_language_model(model, CPU, torch.float32)


def test_a_language_model_without_linear_layers_is_refused(assembled: Callable) -> None:
    model, _ = assembled("gpt2")
    with pytest.raises(AlignGPTError, match="gpt2 has no linear layers"):
        quantize_language_model(model, CPU, torch.float32)


def test_four_bits_are_not_shared_out(tiny_recipe: Callable[..., Recipe]) -> None:
    stage = tiny_recipe("llama_wide", instruct__lora={"rank": 4, "bits": 4}, instruct__sharding="full").instruct
    with pytest.raises(RecipeError, match="4 bits cannot be sharded"):
        check_sharding(stage)
