"""Two processes, of which one has the weights of a model and the other its shapes."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing import spawn

from aligngpt.errors import AlignGPTError
from aligngpt.model.assembling import assemble
from aligngpt.training.distributed.fsdp import reads_weights, shard, whole_tensors
from aligngpt.training.distributed.weights_from_main import has_other_tensors, weights_from_main
from aligngpt.training.recipe import Recipe


def _in_group(rank: int, store: Path, *arguments: Any) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "LOCAL_RANK": rank}.items():
            patch.setenv(name, str(value))
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
        _shard(rank, *arguments)
        _refuse_another_model(rank)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _shard(rank: int, tower: Path, language: Path, how: str, trains_tower: bool) -> None:
    expected, _ = assemble(tower, language, seed=3)
    model, _ = assemble(tower, language, seed=3, weights=rank == 0)
    assert {one.is_meta for one in model.parameters()} == {rank == 1}
    for one in (model, expected):
        one.model.vision_tower.requires_grad_(trains_tower)
    shard(model, how, torch.device("cpu"), in_bfloat16=False)
    wanted = dict(expected.named_parameters())
    for name, parameter in model.named_parameters():
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        assert torch.equal(whole, wanted[name]), name
        assert parameter.requires_grad == wanted[name].requires_grad, name
    for name, buffer in expected.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer), name
    ids = torch.arange(3, 11).repeat(2, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, expected(input_ids=ids).logits)
    assert whole_tensors(model, lambda name, one: True).keys() == (wanted.keys() if rank == 0 else set())


def _refuse_another_model(rank: int) -> None:
    part = nn.Linear(3, 4 + rank)
    # The main process would wait for the one that differs; what is in its place already it does not send.
    placed = {id(one): (one, one) for one in part.parameters()} if rank == 0 else {}
    different = pytest.raises(AlignGPTError, match="the processes hold different models, at weight of Linear")
    with different if rank else nullcontext():
        weights_from_main(part, torch.device("cpu"), placed)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("language", "how", "trains_tower"),
    [("llama", "full", False), pytest.param("llama_tied", "gradients", True, marks=pytest.mark.slow)],
)
def test_each_process_gets_its_share_of_what_the_main_one_read_and_of_no_other_model(
    tower_folder: Callable[[str], Path],
    language_folder: Callable[[str], Path],
    tmp_path: Path,
    language: str,
    how: str,
    trains_tower: bool,
) -> None:
    arguments = (tmp_path / "store", tower_folder("clip"), language_folder(language), how, trains_tower)
    spawn(_in_group, arguments, nprocs=2)


def test_only_the_main_process_reads_a_model_that_is_shared_out(
    tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(instruct__sharding="full")
    assert recipe.pretrain is not None and recipe.instruct is not None
    monkeypatch.setenv("RANK", "1")
    assert (reads_weights(recipe.pretrain), reads_weights(recipe.instruct)) == (True, False)
    monkeypatch.setenv("RANK", "0")
    assert reads_weights(recipe.instruct)


def test_a_tensor_that_is_no_parameter_cannot_be_sent() -> None:
    part = nn.Linear(2, 2, device="meta")
    assert not has_other_tensors(part)
    part.scale = torch.ones(2, device="meta")
    assert has_other_tensors(part)
