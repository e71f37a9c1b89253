"""Adapters in the language model: initially without effect, the only trained part of it, and merged at the end."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from language_families import LANGUAGES, save_language
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from aligngpt.model.adapters import AdapterError, load_adapter, merge_adapter, save_adapter
from aligngpt.model.assembling import assemble
from aligngpt.training.recipe import LoraRecipe, Recipe
from aligngpt.training.run import train
from aligngpt.training.setup.freezing import freeze_all_but, part_of, trained_tensors
from aligngpt.training.setup.lora import MARK, add_lora, merge_lora
from aligngpt.training.stage import base_folder, model_folder

TEXTS = ["USER : <image> what colour is the circle ? ASSISTANT :", "USER : describe it ASSISTANT :"]


@pytest.mark.parametrize("language", ["llama", "llama_tied", "gpt2", "phi"])
def test_new_adapters_change_nothing_and_merged_ones_stay(
    assembled: Callable, batch_of: Callable, language: str
) -> None:
    model, processor = assembled(language, chat_template="plain")
    batch = batch_of(processor, TEXTS)
    names = {name for name, _ in model.named_parameters()}
    expected = model(**batch).logits
    add_lora(model, LoraRecipe(rank=4), seed=0)
    torch.testing.assert_close(model(**batch).logits, expected)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if MARK in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    changed = model(**batch).logits
    assert not torch.allclose(changed, expected, atol=1e-2)
    merge_lora(model)
    torch.testing.assert_close(model(**batch).logits, changed, rtol=1e-3, atol=1e-3)
    assert {name for name, _ in model.named_parameters()} == names


def test_only_the_language_model_has_adapters(assembled: Callable) -> None:
    model, _ = assembled()
    add_lora(model, LoraRecipe(), seed=0)
    adapters = [name for name, _ in model.named_parameters() if MARK in name]
    assert adapters
    assert all(name.startswith("model.language_model.layers.") for name in adapters)
    # Seven linear layers in each of two decoder layers, two matrices each.
    assert len(adapters) == 2 * 7 * 2


@pytest.mark.parametrize(("bits", "rest"), [(None, "get no adapters\n"), (4, "get no adapters and stay whole\n")])
def test_a_mixtures_experts_are_said_to_get_no_adapters(
    assembled: Callable,
    tower_folder: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bits: Literal[4] | None,
    rest: str,
) -> None:
    model, _ = assembled()
    add_lora(model, LoraRecipe(bits=bits), seed=0)
    assert "note" not in capsys.readouterr().err
    save_language(tmp_path, LANGUAGES["mixtral"])
    model, _ = assemble(tower_folder("clip"), tmp_path, weights=False)
    body = model.model.language_model
    tables = sum(module.weight.numel() for module in body.modules() if isinstance(module, torch.nn.Embedding))
    linear = sum(module.weight.numel() for module in body.modules() if isinstance(module, torch.nn.Linear))
    share = 1 - linear / (sum(parameter.numel() for parameter in body.parameters()) - tables)
    assert share > 0.5
    add_lora(model, LoraRecipe(bits=bits), seed=0)
    said = capsys.readouterr().err
    assert said.startswith(f"note: {share:.0%} of the language model's weights are in no linear layer")
    assert said.endswith(rest)


def test_adapters_train_in_place_of_the_weights(assembled: Callable) -> None:
    model, _ = assembled()
    add_lora(model, LoraRecipe(), seed=0)
    freeze_all_but(model, ("language_model", "projector", "gate"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {part_of(name) for name in trained} == {"language_model", "projector", "gate"}
    assert all(MARK in name for name in trained if part_of(name) == "language_model")
    freeze_all_but(model, ("projector",))
    assert not any(MARK in name for name in trained_tensors(model))


def test_the_seed_decides_where_adapters_start(assembled: Callable) -> None:
    starts = []
    for seed in (0, 0, 1):
        model, _ = assembled()
        torch.rand(3)
        add_lora(model, LoraRecipe(), seed=seed)
        starts.append(torch.cat([p.flatten() for name, p in model.named_parameters() if "lora_A" in name]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.medium
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stage_with_adapters_leaves_an_ordinary_model(tiny_recipe: Callable, precision: str) -> None:
    recipe = tiny_recipe(instruct__lora={"rank": 4}, instruct__precision=precision)
    plain = tiny_recipe(
        output=str(Path(recipe.output).with_name("plain")), instruct__max_steps=1, instruct__learning_rate=1e-12
    )
    train(recipe)
    train(plain)
    found, start = (
        AutoModelForImageTextToText.from_pretrained(model_folder(one)).state_dict() for one in (recipe, plain)
    )
    assert found.keys() == start.keys()
    # The step of the other run is far smaller than any of this one's.
    changed = {name for name in found if not torch.allclose(found[name], start[name], rtol=0, atol=1e-9)}
    assert {part_of(name) for name in changed} == {"language_model", "projector", "gate"}
    assert "lm_head.weight" not in changed
    # The bfloat16 rounding of the frozen weights during training is not in the written model.
    weight = "model.language_model.layers.0.self_attn.q_proj.weight"
    difference = found[weight] - start[weight]
    assert torch.linalg.matrix_rank(difference.double(), rtol=1e-3) <= 4


def adapter_run(tiny_recipe: Callable, language: str = "qwen2", **changes: Any) -> Recipe:
    recipe = tiny_recipe(language, instruct__lora={"rank": 4, "dropout": 0.1, "merge": False}, **changes)
    train(recipe)
    return recipe


def random_images(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch | {
        "pixel_values": torch.randn(batch["pixel_values"].shape, generator=torch.Generator().manual_seed(0))
    }


@pytest.mark.medium
@pytest.mark.parametrize(
    ("language", "changes"),
    [
        ("qwen2", {"instruct__precision": "bfloat16", "pretrain__packing": "packed", "instruct__packing": "packed"}),
        ("llama_tied", {"model__alignment": "none", "model__chat_template": "plain"}),
        ("gpt2", {"model__chat_template": "plain", "instruct__train": ["vision_tower", "language_model", "gate"]}),
        ("mamba2", {"model__chat_template": "plain", "pretrain": None}),
    ],
)
def test_an_adapter_folder_is_the_model_that_was_merged(
    tiny_recipe: Callable, batch_of: Callable, tmp_path: Path, language: str, changes: dict[str, Any]
) -> None:
    recipe = adapter_run(tiny_recipe, language, **changes)
    merged = tiny_recipe(
        language, instruct__lora={"rank": 4, "dropout": 0.1}, output=str(tmp_path / "whole"), **changes
    )
    train(merged)
    folder, base = model_folder(recipe), base_folder(recipe)
    assert not (folder / "model.safetensors").exists() and not (folder / "config.json").exists()
    model = AutoModelForImageTextToText.from_pretrained(model_folder(merged))
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.chat_template == AutoProcessor.from_pretrained(base).chat_template
    batch = random_images(batch_of(processor, TEXTS))
    with torch.no_grad():
        expected = model(**batch).logits
        assert not torch.allclose(
            AutoModelForImageTextToText.from_pretrained(base)(**batch).logits, expected, atol=1e-2
        )
        by_auto = AutoModelForImageTextToText.from_pretrained(folder)
        by_peft = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), folder)
        ours, _ = load_adapter(folder)
        for one in (by_auto, by_peft, ours):
            torch.testing.assert_close(one.eval()(**batch).logits, expected, rtol=1e-4, atol=1e-4)
    assert not any("lora" in name or "modules_to_save" in name for name in ours.state_dict())
    assert ours.generation_config.to_dict() == model.generation_config.to_dict()


def test_what_merge_writes_needs_neither_adapter_nor_base(
    tiny_recipe: Callable, batch_of: Callable, tmp_path: Path
) -> None:
    recipe = adapter_run(tiny_recipe)
    folder, out = model_folder(recipe), tmp_path / "merged"
    adapter = AutoModelForImageTextToText.from_pretrained(folder)
    ours, _ = load_adapter(folder)
    assert merge_adapter(folder, out) == ours.num_parameters()
    base_folder(recipe).rename(tmp_path / "moved")
    merged = AutoModelForImageTextToText.from_pretrained(out)
    batch = random_images(batch_of(AutoProcessor.from_pretrained(out), TEXTS))
    with torch.no_grad():
        found = merged(**batch).logits
        assert torch.equal(found, ours(**batch).logits)
        # Unmerged adapters are summed in a different order, which does not matter in float64.
        pixels = batch["pixel_values"].double()
        found, expected = (one.double().eval()(**batch | {"pixel_values": pixels}).logits for one in (merged, adapter))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert "merged from the adapter `model` and its base `base`" in (out / "README.md").read_text()
    for name in ("model.safetensors", "config.json", "generation_config.json", "processor_config.json"):
        assert (out / name).is_file()
    with pytest.raises(AdapterError, match=r"base of the adapter .*--base FOLDER"):
        load_adapter(folder)
    again = tmp_path / "again"
    merge_adapter(folder, again, base=tmp_path / "moved")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_wrong_adapters_and_bases_say_what_is_wrong(tiny_recipe: Callable, tmp_path: Path) -> None:
    recipe = adapter_run(tiny_recipe, pretrain=None, instruct__max_steps=1)
    folder, base = model_folder(recipe), base_folder(recipe)
    with pytest.raises(AdapterError, match="is not an adapter folder"):
        merge_adapter(base, tmp_path / "out")
    # The last holds both, with the stage that they came from.
    for out in (folder, base, folder.parent):
        with pytest.raises(AdapterError, match="is not empty, and its files would be lost; choose another folder"):
            merge_adapter(folder, out)
    with pytest.raises(AdapterError, match="is a 'qwen2'"):
        merge_adapter(folder, tmp_path / "out", base=recipe.model.language_model)
    (folder / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(AdapterError, match="cannot be applied to its base"):
        merge_adapter(folder, tmp_path / "out")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match="does not name a base"):
        load_adapter(folder)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def adapter(assembled: Callable, tmp_path: Path) -> Path:
    """An adapter folder for one layer of a tiny model, with its base model in the folder `base` next to it."""
    model, processor = assembled()
    (tmp_path / "adapter").mkdir()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "base")
    layer = "model.language_model.layers.0.self_attn.q_proj"
    trained = {f"{layer}.lora_A.default.weight": torch.ones(2, 32), f"{layer}.lora_B.default.weight": torch.ones(32, 2)}
    save_adapter(
        tmp_path / "adapter", model, processor, trained, base_folder=tmp_path / "base", rank=2, alpha=4, dropout=0.0
    )
    return tmp_path / "adapter"


def rewritten(adapter: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = adapter / "adapter_model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata=metadata)


def test_a_base_with_another_vision_tower_is_refused(adapter: Path, tmp_path: Path) -> None:
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "vision_tower" in name and tensors[name].ndim > 1)
    save_file(tensors | {name: tensors[name] + 1}, file, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"another base than .*: the weights of the vision tower differ"):
        load_adapter(adapter)
    # An adapter of an earlier version says nothing about its tower.
    stored = load_file(adapter / "adapter_model.safetensors")
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as opened:
        metadata = opened.metadata()
    del metadata["aligngpt_vision_tower"]
    save_file(stored, adapter / "adapter_model.safetensors", metadata=metadata)
    load_adapter(adapter)


def test_a_tower_that_is_stored_with_the_adapter_replaces_that_of_the_base(assembled: Callable, tmp_path: Path) -> None:
    model, processor = assembled()
    (tmp_path / "adapter").mkdir()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "base")
    layer = "model.language_model.layers.0.self_attn.q_proj"
    name, tensor = next(one for one in model.named_parameters() if one[0].startswith("model.vision_tower."))
    trained = {f"{layer}.lora_A.default.weight": torch.ones(2, 32), f"{layer}.lora_B.default.weight": torch.ones(32, 2)}
    trained[name] = tensor.detach() + 1
    save_adapter(
        tmp_path / "adapter", model, processor, trained, base_folder=tmp_path / "base", rank=2, alpha=4, dropout=0.0
    )
    file = tmp_path / "base" / "model.safetensors"
    saved = load_file(file)
    save_file(saved | {name: saved[name] + 9}, file, metadata={"format": "pt"})
    found, _ = load_adapter(tmp_path / "adapter")
    assert torch.equal(found.state_dict()[name], trained[name])


def test_tokens_without_a_row_are_refused(adapter: Path, tmp_path: Path) -> None:
    words = AutoTokenizer.from_pretrained(adapter)
    rows = len(words)
    words.add_tokens(["<box>", "<point>"])
    words.save_pretrained(adapter)
    with pytest.raises(AdapterError, match=rf"has {rows + 2} tokens but the embedding table .* {rows} rows"):
        merge_adapter(adapter, tmp_path / "out")
    # A bare tokenizer, as trainers write it, counts too.
    (adapter / "processor_config.json").unlink()
    with pytest.raises(AdapterError, match=rf"has {rows + 2} tokens but the embedding table .* {rows} rows"):
        merge_adapter(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_that_an_adapter_brings_are_put_in(adapter: Path, tmp_path: Path, batch_of: Callable) -> None:
    words = AutoTokenizer.from_pretrained(adapter)
    rows = len(words)
    words.add_tokens(["<box>", "<point>"])
    words.save_pretrained(adapter)
    table, head = torch.randn(rows + 2, 32), torch.randn(rows + 2, 32)
    prefix = "base_model.model."
    brought = {f"{prefix}model.language_model.embed_tokens.weight": table, f"{prefix}lm_head.weight": head}
    rewritten(adapter, lambda tensors: tensors.update(brought))
    merge_adapter(adapter, tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert model.config.text_config.vocab_size == rows + 2
    assert torch.equal(model.get_input_embeddings().weight, table)
    assert torch.equal(model.lm_head.weight, head)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer.convert_tokens_to_ids("<point>") == rows + 1
    rewritten(adapter, lambda tensors: tensors.pop(f"{prefix}lm_head.weight"))
    with pytest.raises(AdapterError, match=rf"table of {rows + 2} rows where .* has {rows}, but no output layer"):
        merge_adapter(adapter, tmp_path / "again")


def test_a_tokenizer_with_other_numbers_is_that_of_another_base(
    adapter: Path, tmp_path: Path, language_folder: Callable
) -> None:
    for file in language_folder("gemma").glob("token*"):
        shutil.copy(file, adapter)
    with pytest.raises(AdapterError, match=r"tokenizer of the adapter .* and that of its base .* differ"):
        merge_adapter(adapter, tmp_path / "out")


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_base_with_other_weights_is_refused(adapter: Path, tmp_path: Path, precision: torch.dtype) -> None:
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    # A copy of the base in lower precision counts as the same base.
    base.to(precision).save_pretrained(tmp_path / "base")
    merge_adapter(adapter, tmp_path / "out")
    with torch.no_grad():
        base.model.language_model.layers[1].mlp.up_proj.weight.mul_(1.5)
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(AdapterError, match=r"was trained on another base than .*: the weights of the language model"):
        merge_adapter(adapter, tmp_path / "again")


def test_tensors_without_a_place_and_places_without_a_tensor_are_named(adapter: Path, tmp_path: Path) -> None:
    stray = "base_model.model.model.language_model.layers.7.self_attn.q_proj.lora_A.weight"
    rewritten(adapter, lambda tensors: tensors.update({stray: torch.ones(2, 32)}))
    with pytest.raises(
        AdapterError, match=r"another base than .*layers\.7\.self_attn\.q_proj\.lora_A\.weight has no co"
    ):
        merge_adapter(adapter, tmp_path / "out")
    rewritten(adapter, lambda tensors: tensors.pop(stray))
    rewritten(adapter, lambda tensors: tensors.pop("base_model.model.model.alignment.levels"))
    with pytest.raises(AdapterError, match=r"another base than .*model\.alignment\.levels is missing"):
        merge_adapter(adapter, tmp_path / "out")


def test_an_adapter_folder_of_llava_is_called_one(adapter: Path, tmp_path: Path, language_folder: Callable) -> None:
    (adapter / "non_lora_trainables.bin").touch()
    with pytest.raises(AdapterError, match="is an adapter folder of LLaVA's code; merge it with that code"):
        merge_adapter(adapter, tmp_path / "out", base=language_folder("llama"))
