"""Cross-entropy of a linear head without storing its logits.

A head's logits are the largest tensor of a training step: tokens × vocabulary, in the forward pass, as probabilities
and as gradients. The gradient of the cross-entropy is known as soon as the logits are (softmax minus one at the label),
so it is computed right away, chunk by chunk, in the memory of the logits; only tensors the size of the hidden states
and of the head's weight are kept. The idea is that of Liger's fused linear cross-entropy (arXiv 2410.10989); this is
plain torch, for any device.
"""

from typing import Any

import torch
from torch import Tensor

ROWS_AT_ONCE = 1024


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, excluded: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum over tokens of −log softmax(hidden · weightᵀ + bias)[label].

    Args:
        hidden: `(tokens, hidden)`.
        weight: `(vocabulary, hidden)`.
        bias: `(vocabulary,)` or None.
        labels: `(tokens,)`, none of them excluded.
        excluded: ids that are never an answer and are left out of the softmax, `(excluded,)`.

    Returns:
        The sum in float32, with gradients for `hidden`, `weight` and `bias`; and the loss of each token, `(tokens,)`,
        without gradients.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        # Autocast does not cast custom functions: use its precision for the product, as any linear layer does.
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    both: tuple[Tensor, Tensor] = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, labels, excluded
    )
    return both


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, excluded: Tensor
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        # Sums over several chunks are accumulated in single precision.
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias and bias is not None else None
        losses = hidden.new_zeros(len(hidden), dtype=torch.float32)
        for part in range(0, len(hidden), ROWS_AT_ONCE):
            rows = slice(part, part + ROWS_AT_ONCE)
            logits = torch.nn.functional.linear(hidden[rows], weight, bias)
            values = logits.float()
            values.index_fill_(-1, excluded, -torch.inf)
            right = labels[rows].unsqueeze(-1)
            values -= values.logsumexp(dim=-1, keepdim=True)
            losses[rows] = -values.gather(-1, right).squeeze(-1)
            if not (wants_hidden or wants_weight or wants_bias):
                continue
            gradient = values.exp_()
            gradient.scatter_add_(-1, right, gradient.new_full(right.shape, -1.0))
            gradient = gradient.to(hidden.dtype)
            if of_hidden is not None:
                torch.mm(gradient, weight, out=of_hidden[rows])
            if of_weight is not None:
                _add_product(of_weight, gradient.t(), hidden[rows])
            if of_bias is not None:
                of_bias += gradient.sum(dim=0)
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        # In place, since nothing else uses these tensors; autograd refuses a second backward pass over them.
        parts = (None if part is None else part.mul_(scale.to(part.dtype)).to(ctx.dtype) for part in ctx.saved_tensors)
        return (*parts, None, None)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
