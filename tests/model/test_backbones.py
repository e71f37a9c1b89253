"""Backbones: what is loaded from a folder, and what is refused with which message."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from language_families import LANGUAGES, save_language
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, CLIPModel, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from aligngpt.model.assembling import assemble
from aligngpt.model.backbones import BackboneError
from aligngpt.model.language_models import body_of, load_language_model
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.vision_towers import load_vision_tower
from aligngpt.model.vocabulary import grow_vocabulary, load_tokenizer
from aligngpt.model.whole_weights import load_whole

PIXELS = torch.linspace(-2, 2, 3 * 32 * 32).reshape(1, 3, 32, 32)


@pytest.mark.parametrize(
    ("kind", "select_strategy", "registers"),
    [("clip", "default", 0), ("siglip", "full", 0), ("dinov2", "default", 0), ("dinov2_registers", "default", 4)],
)
def test_a_tower_of_its_own_is_loaded_as_it_is(
    tower_folder: Callable[[str], Path], kind: str, select_strategy: str, registers: int
) -> None:
    tower = load_vision_tower(tower_folder(kind))
    assert (tower.patch_size, tower.image_tokens, tower.select_strategy) == (8, 16, select_strategy)
    assert tower.register_tokens == registers
    assert not tower.model.training
    expected = AutoModel.from_pretrained(tower_folder(kind))(PIXELS, output_hidden_states=True).hidden_states
    found = tower.model(PIXELS, output_hidden_states=True).hidden_states
    assert len(found) == 4
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("kind", "whole"), [("clip_full", CLIPModel), ("siglip_full", SiglipModel)])
def test_a_tower_is_taken_out_of_a_model_with_a_text_tower(
    tower_folder: Callable[[str], Path], kind: str, whole: type[CLIPModel]
) -> None:
    tower = load_vision_tower(tower_folder(kind))
    vision = whole.from_pretrained(tower_folder(kind)).vision_model
    assert sum(p.numel() for p in tower.model.parameters()) == sum(p.numel() for p in vision.parameters())
    found = tower.model(PIXELS, output_hidden_states=True).hidden_states
    expected = vision(PIXELS, output_hidden_states=True).hidden_states
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_pictures_get_the_towers_size_mean_and_deviation(tower_folder: Callable[[str], Path]) -> None:
    for kind in ("clip", "siglip"):
        own = json.loads((tower_folder(kind) / "preprocessor_config.json").read_text())
        processor = load_vision_tower(tower_folder(kind), pad_images=False).image_processor
        assert (list(processor.image_mean), list(processor.image_std)) == (own["image_mean"], own["image_std"])
        assert dict(processor.crop_size) == {"height": 32, "width": 32}
        assert not processor.do_pad


def test_stretched_pictures_are_those_of_siglips_own_preprocessing(tower_folder: Callable[[str], Path]) -> None:
    """The whole picture, whatever its proportions."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8))
    ours = load_vision_tower(tower_folder("siglip"), pad_images="stretch").image_processor
    theirs = SiglipImageProcessorPil.from_pretrained(tower_folder("siglip"))
    found, expected = (one(picture, return_tensors="pt")["pixel_values"] for one in (ours, theirs))
    assert torch.equal(found, expected)


def test_a_tower_that_interpolates_takes_another_size(tower_folder: Callable[[str], Path]) -> None:
    tower = load_vision_tower(tower_folder("dinov2"), image_size=48)
    assert tower.image_tokens == 36
    assert tower.image_processor.crop_size["height"] == 48


def test_a_size_the_tower_cannot_read_is_an_error(tower_folder: Callable[[str], Path]) -> None:
    with pytest.raises(BackboneError, match=r"clip.*cannot read plain images of 48 px"):
        load_vision_tower(tower_folder("clip"), image_size=48)


@pytest.mark.parametrize(
    ("named", "select_strategy", "registers"), [(0, "default", 4), (4, "default", 4), (5, "full", 5)]
)
def test_all_tokens_before_the_patches_are_dropped(
    tower_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    named: int,
    select_strategy: str,
    registers: int,
) -> None:
    """Not every tower states how many there are."""

    def with_another_number(config: Any) -> tuple[Any, list[str]]:
        model = transformers.AutoModel.from_config(config)
        model.config.num_register_tokens = named
        return model, []

    monkeypatch.setattr("aligngpt.model.vision_towers.load", lambda *_, config: with_another_number(config))
    tower = load_vision_tower(tower_folder("dinov2_registers"))
    assert (tower.select_strategy, tower.register_tokens, tower.image_tokens) == (select_strategy, registers, 16)


@pytest.mark.parametrize("order", ["backwards", "by column", "patches first"])
def test_tokens_in_another_order_are_an_error(
    tower_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    places = {
        "backwards": [0, *range(16, 0, -1)],
        "by column": [0, *(1 + row * 4 + column for column in range(4) for row in range(4))],
        "patches first": [*range(1, 17), 0],
    }
    load_model = transformers.AutoModel.from_pretrained

    def shuffled(_: Any, source: Path, dtype: torch.dtype, config: Any) -> tuple[Any, list[str]]:
        model = load_model(source, config=config)
        forward = model.forward

        def in_another_order(pixels: torch.Tensor, **options: Any) -> Any:
            output = forward(pixels, **options)
            output.hidden_states = tuple(state[:, places[order]] for state in output.hidden_states)
            return output

        model.forward = in_another_order
        return model, []

    monkeypatch.setattr("aligngpt.model.vision_towers.load", shuffled)
    with pytest.raises(
        BackboneError, match=r"the last 16 of the 17 tokens of \w+ are not the patches in reading order"
    ):
        load_vision_tower(tower_folder("clip"))


def test_preprocessing_that_needs_a_missing_package_is_read_from_its_file(
    tower_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_vision_tower(tower_folder("siglip")).image_processor

    def needs_torchvision(*_: Any, **__: Any) -> None:
        raise ImportError("requires the Torchvision library")

    monkeypatch.setattr("aligngpt.model.vision_towers.AutoImageProcessor.from_pretrained", needs_torchvision)
    found = load_vision_tower(tower_folder("siglip")).image_processor
    assert found.to_dict() == expected.to_dict()


def test_a_language_model_is_no_vision_tower(language_folder: Callable[[str], Path]) -> None:
    with pytest.raises(BackboneError, match="llama does not state a patch size"):
        load_vision_tower(language_folder("llama"))


@pytest.mark.parametrize("name", ["no/such", "/no/such/folder", "."])
def test_a_missing_folder_is_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    source = tmp_path if name == "." else name
    with pytest.raises(BackboneError, match=f"vision tower {source} cannot be loaded"):
        load_vision_tower(source)
    with pytest.raises(BackboneError, match=f"language model {source} cannot be loaded"):
        load_language_model(source)


@pytest.mark.parametrize("damage", ["remove", "truncate"])
@pytest.mark.parametrize("load", [load_vision_tower, load_language_model])
def test_damaged_weights_are_an_error(
    tower_folder: Callable[[str], Path],
    language_folder: Callable[[str], Path],
    tmp_path: Path,
    damage: str,
    load: Callable,
) -> None:
    whole = tower_folder("clip") if load is load_vision_tower else language_folder("llama")
    folder = Path(shutil.copytree(whole, tmp_path / "damaged"))
    weights = folder / "model.safetensors"
    if damage == "remove":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BackboneError, match="damaged cannot be loaded"):
        load(folder)


@pytest.mark.parametrize("load", [load_vision_tower, load_language_model])
def test_a_wrong_value_in_the_configuration_is_an_error(
    tower_folder: Callable[[str], Path],
    language_folder: Callable[[str], Path],
    tmp_path: Path,
    load: Callable[[Path], object],
) -> None:
    whole = tower_folder("clip") if load is load_vision_tower else language_folder("llama")
    folder = Path(shutil.copytree(whole, tmp_path / "damaged"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "large"}))
    with pytest.raises(BackboneError, match="damaged cannot be loaded"):
        load(folder)


def test_a_tower_without_preprocessor_is_an_error(tower_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tower_folder("clip"), tmp_path / "bare"))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(BackboneError, match="bare cannot be loaded"):
        load_vision_tower(folder)


def test_a_vision_tower_is_no_language_model(tower_folder: Callable[[str], Path]) -> None:
    with pytest.raises(BackboneError, match=r"language model .*clip cannot be loaded"):
        load_language_model(tower_folder("clip"))


def test_a_text_part_without_a_class_of_its_own_is_an_error(tmp_path: Path) -> None:
    transformers.Qwen2_5_VLConfig().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="no language model class for qwen2_5_vl_text, the text part of qwen2"):
        load_language_model(tmp_path)


@pytest.mark.parametrize("name", ["gemma3_text in Gemma 3", "llama4_text in Llama 4", "llama in LLaVA"])
def test_a_language_model_is_taken_out_of_a_multimodal_one(tmp_path: Path, name: str) -> None:
    save_language(tmp_path, LANGUAGES[name])
    model: Any = load_language_model(tmp_path)
    whole: Any = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path)
    text = whole.model.language_model if hasattr(whole, "model") else whole.language_model.model
    assert type(body_of(model)) is type(text)
    expected = text.state_dict()
    for key, tensor in body_of(model).state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    assert torch.equal(model.get_output_embeddings().weight, whole.get_output_embeddings().weight)
    assert not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_the_files_of_a_multimodal_model_say_whether_its_output_layer_is_tied(
    tower_folder: Callable[[str], Path], tmp_path: Path, tied: bool
) -> None:
    """Mistral 3 is tied by default and its text part is not; published configurations may state neither."""
    larger = tmp_path / "larger"
    save_language(larger, replace(LANGUAGES["mistral in Mistral 3"], settings={"tie_word_embeddings": tied}))
    config = json.loads((larger / "config.json").read_text())
    for part in (config, config["text_config"]):
        part.pop("tie_word_embeddings", None)
    (larger / "config.json").write_text(json.dumps(config))
    model, _ = assemble(tower_folder("clip"), larger)
    assert model.config.tie_word_embeddings == model.config.get_text_config().tie_word_embeddings == tied
    model.save_pretrained(tmp_path / "model")
    loaded = load_whole(AlignGPTForConditionalGeneration, tmp_path / "model", "the model", BackboneError)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    expected = transformers.AutoModelForImageTextToText.from_pretrained(larger).get_output_embeddings().weight
    assert torch.equal(loaded.lm_head.weight[: len(expected)], expected)


def test_an_output_layer_that_the_configuration_denies_is_an_error(
    language_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(language_folder("llama"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(BackboneError, match=r"hold other weights for it; set tie_word_embeddings to false in its con"):
        load_language_model(tmp_path)


def test_a_multimodal_model_without_its_output_layer_is_an_error(tmp_path: Path) -> None:
    save_language(tmp_path, LANGUAGES["llama in LLaVA"])
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "lm_head" not in name}
    assert len(kept) == len(tensors) - 1
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackboneError, match=r"has no weights for lm_head\.weight of LlamaForCausalLM"):
        load_language_model(tmp_path)


def test_a_frozen_tower_stays_in_evaluation_mode(
    tower_folder: Callable[[str], Path], language_folder: Callable
) -> None:
    """In training mode DINOv3 moves the positions of the patches at random."""
    model, _ = assemble(tower_folder("clip"), language_folder("llama"))
    model.requires_grad_(True).train()
    assert model.model.vision_tower.training
    model.model.vision_tower.requires_grad_(False)
    model.train()
    assert model.model.language_model.training
    assert not any(module.training for module in model.model.vision_tower.modules())


def test_embeddings_of_another_width_are_an_error(language_folder: Callable[[str], Path]) -> None:
    with pytest.raises(BackboneError, match="opt: its embeddings are 16 wide and its layers 32"):
        load_language_model(language_folder("opt"))


def test_a_language_model_is_loaded_in_the_asked_precision(language_folder: Callable[[str], Path]) -> None:
    model = load_language_model(language_folder("llama"), torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training


def test_tokenizer_gets_the_placeholders_and_padding(language_folder: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(language_folder("llama"), with_align=True)
    ids = tokenizer("red <image> <align> blue", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["red", "<image>", "<align>", "blue"]
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == ["red", "blue"]
    assert tokenizer.pad_token == "<unk>"
    assert tokenizer.padding_side == "left"
    without = load_tokenizer(language_folder("llama"), with_align=False)
    assert set(tokenizer.get_vocab()) - set(without.get_vocab()) == {"<align>"}


def test_a_padding_token_of_its_own_is_kept(language_folder: Callable[[str], Path]) -> None:
    assert load_tokenizer(language_folder("gemma"), with_align=True).pad_token == "<pad>"


def test_a_missing_tokenizer_is_an_error(language_folder: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(language_folder("llama") / name, tmp_path)
    with pytest.raises(BackboneError, match=f"tokenizer of {tmp_path} cannot be loaded"):
        load_tokenizer(tmp_path, with_align=True)


@pytest.mark.parametrize("family", ["llama", "llama_tied", "phi", "gemma3"])
def test_new_tokens_start_at_the_mean_of_the_old(language_folder: Callable[[str], Path], family: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(language_folder(family))
    old = model.get_input_embeddings().weight.detach().clone()
    old_head = model.get_output_embeddings().weight.detach().clone()
    size = len(old) + 2
    grow_vocabulary(model, size)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert len(table) == len(head) == model.config.vocab_size == size
    assert torch.equal(table[: len(old)], old)
    assert torch.equal(head[: len(old)], old_head)
    spread = 0.05 * old.std()
    assert (table[len(old) :] - old.mean(dim=0)).abs().max() < spread
    assert (head[len(old) :] - old_head.mean(dim=0)).abs().max() < spread
    bias = model.get_output_embeddings().bias
    if bias is not None:
        torch.testing.assert_close(bias[len(old) :], bias[: len(old)].mean().expand(len(bias) - len(old)))
    assert (bias is not None) == (family == "phi")
    assert (table is head) == bool(model.config.tie_word_embeddings)
    assert type(model.get_input_embeddings()) is type(
        AutoModelForCausalLM.from_pretrained(language_folder(family)).get_input_embeddings()
    )


def test_new_tokens_can_be_told_apart(language_folder: Callable[[str], Path]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model: Any = load_language_model(language_folder("llama"), dtype)
        grow_vocabulary(model, 51)
        table = model.get_input_embeddings().weight
        assert len(torch.unique(table, dim=0)) == len(table) == 51


def test_a_vocabulary_with_room_stays_as_it_is(language_folder: Callable[[str], Path]) -> None:
    model: Any = load_language_model(language_folder("llama"))
    before = model.get_input_embeddings().weight
    size = len(before)
    grow_vocabulary(model, size)
    assert model.get_input_embeddings().weight is before
    assert model.config.vocab_size == size
