"""The values of a tensor as bytes, for digests."""

import torch
from torch import Tensor


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values in memory order, of any shape, dtype and device; `tensor.nbytes` bytes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
