"""Products of a few rows with weights in float32 on a CPU, as they are needed to answer a few requests together.

The BLAS library that torch calls reorders the weights for every product of two rows and more, which takes up to three
times as long as the product with one row. oneDNN, which torch calls in other precisions, does with less, and with none
at all if the weights were brought into its order before; one row, too, then takes only as long as reading the weights.
Results are equal up to rounding.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from aligngpt.memory import available_memory

SHARE_OF_MEMORY = 4
"""Weights are copied in another order if that takes at most this part of the memory that is free."""

_ROWS = 8
"""The number of rows that the order of the weights is chosen for; products of other numbers work too."""

_PRECISE = 1e-4
"""Largest difference from torch's own product in the check, whose results are sums of 64 products of about 1."""


class _OneDnn(NamedTuple):
    product: Callable[[Tensor, Tensor, Tensor | None, str, list[Any], str], Tensor]
    order: Callable[[Tensor, int], Tensor]


class Product:
    """A linear layer, without gradients.

    Args:
        weight: `(out, in)`.
        bias: `(out,)`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        self._ordered: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """`(rows, in)` → `(rows, out)`."""
        # Without the copy, oneDNN gains nothing for one row.
        one_dnn = None if len(rows) == 1 and self._ordered is None else self._faster()
        if one_dnn is None:
            return F.linear(rows, self.weight, self.bias)
        weight = self.weight if self._ordered is None else self._ordered
        return one_dnn.product(rows, weight, self.bias, "none", [], "")

    @property
    def can_order(self) -> bool:
        """Whether there is another order of the weights."""
        return self._faster() is not None

    def order(self) -> None:
        """Copy the weights in oneDNN's order, if they have one; they must not change afterwards."""
        if (one_dnn := self._faster()) is not None:
            self._ordered = one_dnn.order(self.weight, _ROWS)

    def _faster(self) -> "_OneDnn | None":
        """oneDNN, if it computes products with these weights."""
        return _one_dnn() if self.weight.device.type == "cpu" and self.weight.dtype == torch.float32 else None


def order_all(products: Sequence[Product]) -> bool:
    """Make the copies of all weights, if there is memory for them; returns whether that was done."""
    free = available_memory()
    if free is None or not all(one.can_order for one in products):
        return False
    if sum(one.weight.nbytes for one in products) * SHARE_OF_MEMORY > free:
        return False
    for one in products:
        one.order()
    return True


class InPlaceOf(TorchFunctionMode):
    """A context in which the linear layer that has the weights of a product computes as the product does."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.product = product

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and len(args) > 1 and args[1] is self.product.weight:
            return self.product(args[0])
        return func(*args, **(kwargs or {}))


@cache
def _one_dnn() -> _OneDnn | None:
    """torch's linear layer by oneDNN; None if this torch has none, or another one than expected."""
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias = (torch.randn(shape, generator=generator) for shape in ((3, 64), (48, 64), (48,)))
    try:
        found = _OneDnn(torch.ops.mkldnn._linear_pointwise.default, torch.ops.mkldnn._reorder_linear_weight.default)
        with torch.no_grad():
            differences = [
                (found.product(rows, weights, one, "none", [], "") - F.linear(rows, weight, one)).abs().max().item()
                for weights in (weight, found.order(weight, _ROWS))
                for one in (None, bias)
            ]
    # They are no public part of torch: whatever happens, torch's own product is there.
    except Exception:
        return None
    return found if max(differences) < _PRECISE else None
