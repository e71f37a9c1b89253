"""Optimisers by name: each trains the right parameters at the right rate, and resumes from a checkpoint bit for bit."""

import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from aligngpt.errors import AlignGPTError
from aligngpt.training.loop.optimizers import MuonWithAdamW, hidden_matrices, make_optimizer, parameter_groups
from aligngpt.training.recipe import LoraRecipe, StageRecipe
from aligngpt.training.setup.freezing import freeze_all_but, hold_trained_in_bfloat16, part_of
from aligngpt.training.setup.lora import add_lora

ALL = ("vision_tower", "projector", "level_table", "gate", "language_model")


def stage(**settings: Any) -> StageRecipe:
    return StageRecipe.model_validate(
        {"data": "x.json", "batch_size": 4, "learning_rate": 1e-3, "train": ALL} | settings
    )


def parts_by_rate(model: torch.nn.Module, settings: StageRecipe) -> dict[float, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        group["lr"]: {part_of(names[id(parameter)]) for parameter in group["params"]}
        for group in parameter_groups(model, settings)
    }


def test_a_part_trains_at_its_own_rate(assembled: Callable) -> None:
    model, _ = assembled()
    rates = {"vision_tower": 1e-6, "gate": 1e-2, "level_table": 1e-2}
    settings = stage(projector_learning_rate=5e-4, learning_rates=rates)
    found = parts_by_rate(model, settings)
    assert found == {
        1e-3: {"language_model"},
        1e-6: {"vision_tower"},
        5e-4: {"projector"},
        1e-2: {"gate", "level_table"},
    }
    assert next(iter(found)) == 1e-3


def test_equal_rates_are_one_group_of_all_that_trains(assembled: Callable) -> None:
    model, _ = assembled("llama_tied")
    freeze_all_but(model, ("language_model", "gate"))
    (group,) = parameter_groups(model, stage())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(map(id, group["params"])) == sorted(map(id, trained))


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "muon", "adafactor", "sgd"])
def test_an_optimiser_goes_on_bit_for_bit(assembled: Callable, name: str) -> None:
    model, _ = assembled()
    settings = stage(optimizer=name, learning_rates={"gate": 0.01}, weight_decay=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, settings)
    step(model, optimizer, 0)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    other = deepcopy(model)
    resumed = make_optimizer(other, settings)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    for seed in (1, 2):
        step(model, optimizer, seed)
        step(other, resumed, seed)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.fixture
def torchao_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao's optimisers without the compilation of their step, which takes seconds for each shape on a CPU."""
    pytest.importorskip("torchao")
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.mark.usefixtures("torchao_uncompiled")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_torchaos_optimiser_goes_on_bit_for_bit(assembled: Callable, tmp_path: Path, precision: str) -> None:
    """Through a file read without pickled code, as checkpoints are."""
    model, _ = assembled("llama_wide")
    if precision == "bfloat16":
        hold_trained_in_bfloat16(model)
    settings = stage(optimizer="adamw_torch_8bit", precision="bfloat16", weight_precision=precision)
    optimizer = make_optimizer(model, settings)
    torch.manual_seed(0)
    step(model, optimizer, 0)
    assert "OptimState8bit" in {type(state["exp_avg"]).__name__ for state in optimizer.state.values()}
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    other = deepcopy(model)
    resumed = make_optimizer(other, settings)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for one, its in ((model, optimizer), (other, resumed)):
        torch.manual_seed(1)  # Of the stochastic rounding.
        for seed in (1, 2):
            step(one, its, seed)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.usefixtures("torchao_uncompiled")
def test_stochastic_rounding_keeps_updates_that_rounding_to_nearest_loses(assembled: Callable) -> None:
    """50 steps of a hundredth of a weight's last place: to nearest nothing moves, on average half a place is due."""
    moved = {}
    for rounded in ("bfloat16", "float32"):
        model, _ = assembled("llama_wide")
        freeze_all_but(model, ("language_model",))
        hold_trained_in_bfloat16(model)
        weight = model.model.language_model.layers[0].mlp.gate_proj.weight
        assert weight.dtype == torch.bfloat16
        with torch.no_grad():
            weight.fill_(1.0)
        settings = stage(optimizer="adamw_torch_8bit", learning_rate=2**-7 / 100, precision="bfloat16")
        # The recipe refuses this combination; here it shows why.
        optimizer = make_optimizer(model, settings.model_copy(update={"weight_precision": rounded}))
        torch.manual_seed(0)
        for _ in range(50):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[rounded] = (1 - weight.float()).mean().item()
    assert moved["float32"] == 0
    assert moved["bfloat16"] == pytest.approx(50 * 2**-7 / 100, rel=0.1)


def test_small_and_new_parameters_stay_in_float32(assembled: Callable) -> None:
    model, _ = assembled("llama_wide")
    freeze_all_but(model, ("language_model", "projector", "gate"))
    hold_trained_in_bfloat16(model)
    low = {name for name, one in model.named_parameters() if one.dtype == torch.bfloat16}
    assert low and {part_of(name) for name in low} == {"language_model"}
    assert all(model.get_parameter(name).numel() >= 4096 for name in low)
    assert not any("norm" in name for name in low)


def test_bfloat16_weights_that_would_lose_their_updates_are_refused() -> None:
    with pytest.raises(ValueError, match="in which adamw_8bit would lose most of its updates"):
        stage(weight_precision="bfloat16", optimizer="adamw_8bit", precision="bfloat16")
    with pytest.raises(ValueError, match="set precision to bfloat16"):
        stage(weight_precision="bfloat16", optimizer="adamw_torch_8bit")
    with pytest.raises(ValueError, match="with lora, set it to float32"):
        stage(weight_precision="bfloat16", optimizer="adamw_torch_8bit", precision="bfloat16", lora={"rank": 2})


def test_torchao_that_is_missing_says_what_to_do(assembled: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = assembled()
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(AlignGPTError, match="optimizer adamw_torch_8bit needs torchao: pip install torchao"):
        make_optimizer(model, stage(optimizer="adamw_torch_8bit"))


def test_a_schedule_reaches_both_halves_of_muon_after_a_checkpoint(assembled: Callable) -> None:
    model, _ = assembled()
    optimizer = make_optimizer(model, stage(optimizer="muon"))
    optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step(model, optimizer, 0)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("language", ["llama", "llama_tied", "gpt2", "mamba2"])
def test_muon_takes_hidden_matrices_alone(assembled: Callable, language: str) -> None:
    model, _ = assembled(language, chat_template="plain")
    matrices = hidden_matrices(model)
    taken = {name for name, parameter in model.named_parameters() if id(parameter) in matrices}
    assert {part_of(name) for name in taken} == {"language_model", "projector"}
    assert id(model.lm_head.weight) not in matrices
    assert id(model.get_input_embeddings().weight) not in matrices
    assert all(model.get_parameter(name).ndim == 2 for name in taken)
    if language == "llama":
        assert len(taken) == 2 * 7 + 2
    optimizer = make_optimizer(model, stage(optimizer="muon"))
    assert isinstance(optimizer, MuonWithAdamW)
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len(list(model.parameters()))


def test_muon_takes_one_half_where_the_other_is_empty(assembled: Callable) -> None:
    model, _ = assembled()
    for part in ("gate", "language_model"):
        if part == "language_model":
            add_lora(model, LoraRecipe(rank=2), seed=0)
        freeze_all_but(model, (part,))
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        step(model, make_optimizer(model, stage(optimizer="muon", train=[part])), 0)
        changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        assert {part_of(name) for name in changed} == {part}


def test_weight_decay_and_betas_are_handed_on(assembled: Callable) -> None:
    model, _ = assembled()
    for name, option in (("adamw", "betas"), ("muon", "betas"), ("sgd", "momentum"), ("adafactor", "weight_decay")):
        optimizer = make_optimizer(model, stage(optimizer=name, weight_decay=0.2, adam_betas=[0.8, 0.9]))
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.2, 0.0}
        if option != "weight_decay":
            expected = {"betas": (0.8, 0.9), "momentum": 0.8}[option]
            assert optimizer.param_groups[-1][option] == expected


@pytest.mark.parametrize("language", ["llama", "gpt2", "qwen3", "mamba2"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_biases_and_norms_do_not_decay(assembled: Callable, language: str, name: str) -> None:
    model, _ = assembled(language, chat_template="plain")
    optimizer = make_optimizer(model, stage(optimizer=name, weight_decay=0.2, learning_rates={"gate": 0.5}))
    decays = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    trainer = Trainer.__new__(Trainer)
    expected = set(trainer.get_decay_parameter_names(model))
    found = {name for name, parameter in model.named_parameters() if decays[id(parameter)]}
    assert found == expected & dict(model.named_parameters()).keys()
    assert "model.alignment.levels" in found and not any(name.endswith("bias") for name in found)
    assert {group["weight_decay"] for group in parameter_groups(model, stage())} == {0.0}


def test_8_bits_hold_the_moments_of_large_parameters(assembled: Callable) -> None:
    model, _ = assembled("llama_wide")
    optimizer = make_optimizer(model, stage(optimizer="adamw_8bit"))
    step(model, optimizer, 0)
    weight = model.model.language_model.layers[0].mlp.up_proj.weight
    assert weight.numel() >= 4096  # bitsandbytes keeps smaller ones in single precision
    assert optimizer.state[weight]["state1"].dtype == torch.uint8


def test_8_bits_without_bitsandbytes_say_what_to_do(assembled: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = assembled()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(AlignGPTError, match="optimizer adamw_8bit needs bitsandbytes: pip install bitsandbytes"):
        make_optimizer(model, stage(optimizer="adamw_8bit"))
