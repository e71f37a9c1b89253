"""Sharded training: parameters, gradients and optimiser state are split over the devices (FSDP2).

Uses torch's own `fully_shard`, which runs on both GPUs (NCCL) and CPUs (gloo); accelerate's plugin does not. Each layer
of the language model is a group of its own, gathered when it is needed; the rest of the model is another group. Every
device holds all of a frozen vision tower: it is small and has no gradients.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.training.distributed.processes import is_main_process, processes, processes_of_machine
from aligngpt.training.distributed.weights_from_main import Placed, weights_from_main
from aligngpt.training.recipe import RecipeError, StageRecipe
from aligngpt.training.setup.compiling import layers_of
from aligngpt.training.setup.pretrained_parts import load_tensors

SHARDS_FOLDER = "shards"
"""Folder in a checkpoint with trained weights and optimiser state, in torch's distributed checkpoint format."""

OPTIMIZERS = ("adamw", "sgd")
"""Element-wise optimisers, for which a part of a matrix is enough."""


def check_sharding(stage: StageRecipe) -> None:
    """Check that the settings of a stage allow sharding.

    Raises:
        RecipeError: its optimiser needs whole matrices, or its frozen weights are in 4 bits.
    """
    if stage.sharding != "none" and stage.lora is not None and stage.lora.bits is not None:
        raise RecipeError("weights in 4 bits cannot be sharded; remove lora.bits, or set sharding to none")
    if stage.sharding != "none" and stage.optimizer == "adamw_torch_8bit":
        raise RecipeError(
            f"the checkpoints of sharding {stage.sharding} do not cover the moments of adamw_torch_8bit; set optimizer "
            f"to {' or '.join(OPTIMIZERS)}, or sharding to none"
        )
    if stage.sharding != "none" and stage.optimizer not in OPTIMIZERS:
        raise RecipeError(
            f"optimizer {stage.optimizer} needs whole matrices, but sharding {stage.sharding} gives each device only a "
            f"part of them; set optimizer to {' or '.join(OPTIMIZERS)}, or sharding to none"
        )


def reads_weights(stage: StageRecipe) -> bool:
    """Whether this process reads the weights of a stage's model: if it is sharded, the main process alone does."""
    return stage.sharding == "none" or is_main_process()


def shard(model: AlignGPTForConditionalGeneration, how: str, device: torch.device, *, in_bfloat16: bool) -> None:
    """Shard a model over all processes, in place; its parameters must be frozen or not before.

    Args:
        model: with its weights in the main process; the others take them from there, and may hold shapes only.
        how: `full`, everything is sharded (as ZeRO-3); `gradients`, parameters are gathered once per step and kept
            until the backward pass ends (as ZeRO-2); `hybrid`, sharded within each machine, replicated across machines.
        device: of this process.
        in_bfloat16: gather the layers of the language model in bfloat16; gradients are summed in float32.
    """
    mesh = _mesh(how, device)
    reshard = how != "gradients"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if in_bfloat16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    tower = model.model.vision_tower
    whole: set[nn.Parameter] = set()
    placed: Placed = {}
    if not any(parameter.requires_grad for parameter in tower.parameters()):
        weights_from_main(tower, device, placed)
        whole = set(tower.parameters())
    for layer in layers_of(model):
        weights_from_main(layer, device, placed)
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    weights_from_main(model, device, placed)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, ignored_params=whole or None)
    # With these, transformers' Trainer leaves device placement and gradient reduction to the model.
    model._is_distributed_loading_by_transformers = True
    model._is_fsdp_managed_module = True


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was applied to a model."""
    return isinstance(model, FSDPModule)


def sharding_line(model: AlignGPTForConditionalGeneration) -> str:
    """Describe how a model is sharded, as found in the model rather than as requested.

    Raises:
        RecipeError: a trainable parameter is not sharded.
    """
    held = total = 0
    for name, parameter in model.named_parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        held, total = held + local.numel(), total + parameter.numel()
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            raise RecipeError(f"sharding failed: every process holds all of {name}; set sharding to none")
    kinds = sorted({type(module).__name__ for module in model.modules() if isinstance(module, FSDPModule)})
    groups = sum(isinstance(module, FSDPModule) for module in model.modules())
    return (
        f"sharded (FSDP2) over {processes()} processes in {groups} groups ({', '.join(kinds)}): this one holds "
        f"{held:,} of {total:,} parameters"
    )


@contextlib.contextmanager
def gradients_later(model: nn.Module) -> Iterator[None]:
    """Defer the part of the gradient reduction that costs no memory: more micro-batches of this step follow.

    Each micro-batch leaves this process the sum over its group of its own part of the gradients: whole ones, kept in
    float32 until the last micro-batch, would take four bytes per trained parameter on every device. Only the sum over
    the replicas of `hybrid`, which is one of such parts, waits for the last micro-batch.
    """
    assert isinstance(model, FSDPModule)
    model.set_requires_all_reduce(False)
    try:
        yield
    finally:
        model.set_requires_all_reduce(True)


def whole_tensors(model: nn.Module, wanted: Callable[[str, nn.Parameter], bool]) -> dict[str, torch.Tensor]:
    """Gather whole parameters on the CPU, by name; every process must call it, but only the main process gets them.

    Args:
        model: sharded or not.
        wanted: predicate on name and parameter.
    """
    found = {}
    for name, parameter in model.named_parameters():
        if wanted(name, parameter):
            data = parameter.detach()
            tensor = data.full_tensor() if isinstance(data, DTensor) else data
            if is_main_process():
                found[name] = tensor.cpu().contiguous()
    return found


def save_shards(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Write the trainable parameters and the optimiser state to `checkpoint/shards`, each process its own part."""
    state_dict_saver.save(_state(model, optimizer), checkpoint_id=checkpoint / SHARDS_FOLDER)


def has_shards(checkpoint: Path) -> bool:
    """Whether a checkpoint was written by `save_shards`."""
    return (checkpoint / SHARDS_FOLDER).is_dir()


def load_shards(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Load the checkpoint that `save_shards` wrote; the number of processes may differ, and may be one."""
    state = _state(model, optimizer)
    state_dict_loader.load(state, checkpoint_id=checkpoint / SHARDS_FOLDER)
    set_model_state_dict(model, state["model"], options=StateDictOptions(strict=False))
    set_optimizer_state_dict(model, optimizer, state["optimizer"])


def load_whole_tensors(model: nn.Module, path: Path) -> None:
    """Load the trainable parameters from a file with whole tensors, as saved by a run without sharding.

    Raises:
        AlignGPTError: the file cannot be read, or names or shapes differ.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    whole = {name: torch.empty(parameter.shape, dtype=parameter.dtype) for name, parameter in trained.items()}
    load_tensors(path, whole)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(_part(parameter, whole[name]))


def load_whole_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Load the optimiser state from a file with whole tensors, as saved by a run without sharding."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    content["state"] = {
        number: {
            name: _part(parameters[number], value) if value.shape == parameters[number].shape else value
            for name, value in state.items()
        }
        for number, state in content["state"].items()
    }
    optimizer.load_state_dict(content)


def _part(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A whole tensor placed like the parameter: sharded in the same way, or whole."""
    if not isinstance(parameter, DTensor):
        return whole.to(parameter.device)
    return distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model, options=StateDictOptions(ignore_frozen_params=True)),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }


def _mesh(how: str, device: torch.device) -> DeviceMesh:
    if how != "hybrid":
        return init_device_mesh(device.type, (processes(),))
    inside = processes_of_machine()
    return init_device_mesh(device.type, (processes() // inside, inside), mesh_dim_names=("replicate", "shard"))
