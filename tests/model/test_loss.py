"""The loss without logits: value and gradients equal those computed from logits."""

import pytest
import torch
from torch.nn import functional as F

from aligngpt.model import loss as module
from aligngpt.model.loss import linear_cross_entropy

EXCLUDED = torch.tensor([3, 17])


def reference(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor):
    logits = F.linear(hidden, weight, bias).float().index_fill(-1, EXCLUDED, -torch.inf)
    return F.cross_entropy(logits, labels, reduction="sum")


@pytest.fixture(params=[1000, 7], ids=["in one part", "in parts"])
def tensors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", request.param)
    hidden, weight, bias = torch.randn(20, 8), torch.randn(40, 8), torch.randn(40)
    return [tensor.requires_grad_() for tensor in (hidden, weight, bias)]


LABELS = torch.tensor([0, 1, 2, 4, 5] * 4)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("frozen_head", [True, False])
def test_value_and_gradients_are_those_of_the_logits(
    tensors: list[torch.Tensor], frozen_head: bool, with_bias: bool
) -> None:
    hidden, weight, bias = tensors
    bias = bias if with_bias else None
    for tensor in (weight, bias) if frozen_head else ():
        if tensor is not None:
            tensor.requires_grad_(False)
    wanted = [tensor for tensor in (hidden, weight, bias) if tensor is not None and tensor.requires_grad]
    expected = reference(hidden, weight, bias, LABELS)
    found = linear_cross_entropy(hidden, weight, bias, LABELS, EXCLUDED)[0]
    torch.testing.assert_close(found, expected)
    gradients = zip(torch.autograd.grad(found / 7, wanted), torch.autograd.grad(expected / 7, wanted), strict=True)
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs)


def test_under_autocast_it_is_as_exact_as_a_linear_layer(tensors: list[torch.Tensor]) -> None:
    hidden, weight, bias = tensors
    exact = torch.autograd.grad(reference(hidden, weight, bias, LABELS), [hidden, weight])
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(hidden, weight, bias, LABELS, EXCLUDED)[0]
        usual = reference(hidden, weight, bias, LABELS)
    ours, theirs = (torch.autograd.grad(loss, [hidden, weight]) for loss in (found, usual))
    assert found.dtype == torch.float32
    for wanted, mine, others in zip(exact, ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - wanted).norm() <= 1.2 * (others - wanted).norm()


def test_a_second_backward_pass_is_refused(tensors: list[torch.Tensor]) -> None:
    loss = linear_cross_entropy(*tensors, LABELS, EXCLUDED)[0]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_gradients_only_the_value_is_computed(tensors: list[torch.Tensor]) -> None:
    with torch.no_grad():
        found = linear_cross_entropy(*tensors, LABELS, EXCLUDED)[0]
    torch.testing.assert_close(found, reference(*tensors, LABELS).detach())
