"""Weights that the main process alone has read, sent to the other processes one part of the model at a time.

Of a model that is sharded, each process holds a share only, so a machine need not have room for as many whole models as
it has devices: the others begin with a model of shapes without values, see `assemble`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from aligngpt.errors import AlignGPTError
from aligngpt.training.distributed.processes import from_main

Placed = dict[int, tuple[Tensor, Tensor]]
"""A tensor and the one in its place, by `id` of the first: what two modules share stays shared, and is sent once."""


def weights_from_main(part: nn.Module, device: torch.device, placed: Placed) -> None:
    """Move a part of a model to a device, with the values of the main process; every process must call it.

    Args:
        part: changed in place. Tensors of it that are sharded already stay as they are.
        device: of this process.
        placed: of the whole model, empty at first.

    Raises:
        AlignGPTError: the processes hold different tensors.
    """
    ours = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor, _, _ in _tensors(part)]
    if (main := from_main(lambda: ours)) != ours:
        different = next((one[0] for one, other in zip(ours, main, strict=False) if one != other), "its end")
        raise AlignGPTError(
            f"the processes hold different models, at {different} of {type(part).__name__}; start all of them with the "
            "same recipe, files and versions"
        )
    for _, tensor, table, key in list(_tensors(part)):
        if id(tensor) not in placed:
            here = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.detach().to(device)
            torch.distributed.broadcast(here, src=0)
            new = _in_place_of(tensor, here)
            placed[id(tensor)], placed[id(new)] = (tensor, new), (new, new)
        table[key] = placed[id(tensor)][1]


def _in_place_of(tensor: Tensor, here: Tensor) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return here
    if tensor.is_meta:
        return nn.Parameter(here, tensor.requires_grad)
    tensor.data = here
    return tensor


def has_other_tensors(model: nn.Module) -> bool:
    """Whether a module has tensors without values that are neither parameters nor buffers, and so cannot be sent."""
    return any(
        isinstance(value, Tensor) and value.is_meta for module in model.modules() for value in vars(module).values()
    )


def _tensors(part: nn.Module) -> Iterator[tuple[str, Tensor, dict, str]]:
    """The parameters and buffers of a part that are not sharded, with the table and the key that hold each."""
    for place, module in part.named_modules():
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is not None and not isinstance(tensor, DTensor):
                    yield f"{place}.{key}".lstrip("."), tensor, table, key
