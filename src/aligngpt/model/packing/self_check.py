"""Whether the kernel that a device would use gives what a plain masked product gives, tried before training begins.

Kernels differ between devices and versions of torch (in where a causal mask of unequal lengths is aligned, in whether
heads may be shared), and a wrong one would train a wrong model without an error.
"""

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from aligngpt.model.packing.attention import packed_attention
from aligngpt.model.packing.leaks import shortest_window
from aligngpt.model.packing.pieces import Piece, Pieces, Way

TRIED = (Piece(0, 150, 0, 0), Piece(150, 220, 0, 150), Piece(220, 253, 0, 150), Piece(253, 453, 253, 253))
"""A prefix with two branches and a sample of its own, longer than a kernel's block."""

WINDOW = 64
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.05}
"""Largest difference from the exact result, relative to its norm."""


def kernel_trouble(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why attention over packed rows, as layers of a language model would call it, cannot be used on a device.

    Output and gradients are compared with those of a masked product in float32.

    Args:
        config: of the language model; its heads, their width, its window and its soft cap are tried.
        device: that training runs on.
        dtype: that training computes in.

    Returns:
        The end of a sentence about this attention: that it is not exact, or the error of the kernel; None if it can be
        used.
    """
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    softcap = getattr(config, "attn_logit_softcapping", None)
    generator = torch.Generator().manual_seed(0)
    length = TRIED[-1].stop
    inputs = [torch.randn(1, number, length, width, generator=generator) for number in (heads, shared, shared)]
    direction = torch.randn(1, length, heads, width, generator=generator)
    windows = [None] if shortest_window(config) is None else [None, WINDOW]

    def run(way: Way | None, window: int | None) -> list[Tensor]:
        """The output and the gradients of query, key and value."""
        pieces = Pieces(TRIED).to(device)
        pieces.way = way
        kind = torch.float32 if way == "mask" else dtype
        # Both begin with what the training precision can hold.
        held = [tensor.to(device, dtype).to(kind).requires_grad_() for tensor in inputs]
        query, key, value = held
        seen, _ = packed_attention(
            nn.Identity(), query, key, value, None, pieces=pieces, sliding_window=window, softcap=softcap
        )
        return [seen, *torch.autograd.grad(seen, held, direction.to(device, dtype).to(kind))]

    try:
        for window in windows:
            for found, expected in zip(run(None, window), run("mask", window), strict=True):
                difference = (found.float() - expected).norm() / expected.norm()
                if not difference <= TOLERANCE[dtype]:
                    return "is not exact"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # Kernels raise all kinds of errors for a device or a shape that they are not made for.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"fails ({reason})"
    return None
