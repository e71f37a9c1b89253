"""Trained and frozen parameters of a stage, and the file that pre-training writes."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aligngpt.errors import AlignGPTError
from aligngpt.training.recipe import RecipeError
from aligngpt.training.setup.freezing import freeze_all_but, hold_frozen_in, part_of, trained_tensors
from aligngpt.training.setup.pretrained_parts import (
    PRETRAINED_FILE,
    is_pretrained,
    load_pretrained_parts,
    save_pretrained_parts,
)


def pretrained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if is_pretrained(name)}


def trained_parts(model: torch.nn.Module) -> set[str]:
    return {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("language", ["llama", "llama_tied", "gpt_neox"])
def test_every_parameter_belongs_to_one_part(assembled: Callable, language: str) -> None:
    model, _ = assembled(language, chat_template="plain")
    parts = {name: part_of(name) for name, _ in model.named_parameters()}
    assert set(parts.values()) == {"vision_tower", "projector", "level_table", "gate", "language_model"}
    assert [name for name, part in parts.items() if part == "level_table"] == ["model.alignment.levels"]
    assert (
        parts["lm_head.weight" if language != "llama_tied" else "model.language_model.norm.weight"] == "language_model"
    )


@pytest.mark.parametrize(
    "parts", [("projector", "level_table"), ("language_model", "projector", "gate"), ("vision_tower",)]
)
def test_only_the_named_parts_train(assembled: Callable, parts: tuple) -> None:
    model, _ = assembled()
    freeze_all_but(model, parts)
    assert trained_parts(model) == set(parts)
    freeze_all_but(model, ("gate",))
    assert trained_parts(model) == {"gate"}


@pytest.mark.parametrize("tower", ["clip", "siglip", "dinov2"])
@pytest.mark.parametrize(
    ("layer", "count", "blocks"), [(-2, 1, {1}), (-2, 2, {0, 1}), (-1, 1, {2}), (1, 1, {0}), ([-2, -3], 1, {1})]
)
def test_the_last_blocks_that_are_used_train(
    assembled: Callable, batch_of: Callable, tower: str, layer: int | list[int], count: int, blocks: set[int]
) -> None:
    model, processor = assembled(tower=tower)
    model.config.vision_feature_layer = layer
    freeze_all_but(model, ("vision_tower", "gate"), vision_blocks=count)
    assert trained_parts(model) == {"vision_tower", "gate"}
    names = {name for name, parameter in model.model.vision_tower.named_parameters() if parameter.requires_grad}
    assert {int(re.search(r"\.(\d+)\.", name).group(1)) for name in names} == blocks
    if isinstance(layer, int):
        model(**batch_of(processor, ["USER : <image> what ? ASSISTANT :"])).logits[:, -1, :5].sum().backward()
        assert all(model.model.vision_tower.get_parameter(name).grad is not None for name in names)


def test_more_blocks_than_are_used_are_an_error(assembled: Callable) -> None:
    model, _ = assembled()
    with pytest.raises(RecipeError, match="vision_blocks is 3, but 2 blocks of the vision tower are in use"):
        freeze_all_but(model, ("vision_tower",), vision_blocks=3)
    freeze_all_but(model, ("projector",), vision_blocks=2)
    assert trained_parts(model) == {"projector"}


def test_a_part_that_a_model_lacks_is_passed_over(assembled: Callable) -> None:
    model, _ = assembled(alignment="none")
    freeze_all_but(model, ("projector", "level_table", "gate"))
    assert trained_parts(model) == {"projector"}


@pytest.mark.parametrize(("alignment", "parts"), [("none", ("level_table", "gate")), ("global", ("gate",))])
def test_a_stage_with_nothing_left_to_train_is_an_error(assembled: Callable, alignment: str, parts: tuple) -> None:
    model, _ = assembled(alignment=alignment)
    with pytest.raises(RecipeError, match=rf"with alignment {alignment}, the stage has no .*gate; name another"):
        freeze_all_but(model, parts)


def test_frozen_parameters_are_held_in_less_and_others_are_not(assembled: Callable) -> None:
    model, _ = assembled()
    freeze_all_but(model, ("projector", "level_table"))
    buffers = {name: buffer.dtype for name, buffer in model.named_buffers()}
    hold_frozen_in(model, torch.bfloat16)
    for _, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
    assert buffers == {name: buffer.dtype for name, buffer in model.named_buffers()}


def test_what_pretraining_made_is_taken_over_bit_for_bit(assembled: Callable, tmp_path: Path) -> None:
    trained, _ = assembled()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if part_of(name) in ("projector", "level_table"):
                parameter.add_(torch.randn_like(parameter))
    save_pretrained_parts(pretrained(trained), tmp_path)
    fresh, _ = assembled()
    load_pretrained_parts(fresh, tmp_path / PRETRAINED_FILE)
    for (name, ours), (_, theirs) in zip(fresh.named_parameters(), trained.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert set(load_file(tmp_path / PRETRAINED_FILE)) == {
        "model.alignment.levels",
        *(f"model.multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")),
    }


def test_a_file_that_does_not_fit_names_every_difference(assembled: Callable, tmp_path: Path) -> None:
    model, _ = assembled()
    save_pretrained_parts(pretrained(model), tmp_path)
    tensors = load_file(tmp_path / PRETRAINED_FILE)
    tensors["model.alignment.levels"] = torch.zeros(5, 32)
    tensors["extra"] = tensors.pop("model.multi_modal_projector.linear_1.bias")
    save_file(tensors, tmp_path / PRETRAINED_FILE)
    with pytest.raises(AlignGPTError) as raised:
        load_pretrained_parts(model, tmp_path / PRETRAINED_FILE)
    message = str(raised.value)
    assert "extra is not part of this model" in message
    assert "linear_1.bias is missing" in message
    assert "model.alignment.levels is (5, 32), expected (8, 32)" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "which pre-training writes; run `aligngpt train` with `--stage pretrain` first"),
        (b"", "run the stage that writes it again"),
        (b"no safetensors", "run the stage that writes it again"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_to_do(
    assembled: Callable, tmp_path: Path, content: bytes | None, says: str
) -> None:
    model, _ = assembled()
    if content is not None:
        (tmp_path / PRETRAINED_FILE).write_bytes(content)
    with pytest.raises(AlignGPTError, match=says):
        load_pretrained_parts(model, tmp_path / PRETRAINED_FILE)


def test_tied_weights_are_kept_once(assembled: Callable) -> None:
    model, _ = assembled("llama_tied")
    freeze_all_but(model, ("language_model",))
    tensors = trained_tensors(model)
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors)
