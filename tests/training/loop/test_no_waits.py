"""A training step reads nothing back from the model's device, and computes the same as one that does."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.examples import Example, Row
from aligngpt.data.batches.layouts import WithLayout
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.model.packing.attention import NAME
from aligngpt.model.padded_attention import NAME as PADDED
from aligngpt.training.loop.loss_watch import LossWatch
from aligngpt.training.loop.metrics import StepMetrics

READS = {
    f"aten::{name}"
    for name in (
        "_local_scalar_dense",
        "is_nonzero",
        "equal",
        "nonzero",
        "nonzero_static",
        "masked_select",
        "masked_scatter_backward",
        "bincount",
        "unique_dim",
        "unique_consecutive",
        "_unique2",
    )
}
"""Operations whose result, or the shape of it, the CPU has to fetch from a GPU."""


class Reads(TorchDispatchMode):
    """Notes the operations that would wait for a GPU, in the forward and the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func._schema.name
        by_mask = name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_") and any(
            isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        of_unknown_size = name == "aten::repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in READS or by_mask or of_unknown_size:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "operation",
    [
        lambda one: one.sum().item(),
        lambda one: bool((one > 0).any()),
        lambda one: one[one > 0],
        lambda one: (one > 0).nonzero(),
        lambda one: one.new_zeros(3).masked_scatter(one > 0, one).sum().backward(),
        lambda one: torch.arange(3).repeat_interleave(one.long()),
        lambda one: torch.equal(one, one),
    ],
)
def test_what_waits_is_noticed(operation: Callable[[Tensor], object]) -> None:
    with Reads() as reads:
        operation(torch.ones(3, requires_grad=True))
    assert reads.found


def rows_of(config: Any, levels: bool, images: Sequence[int], *, branches: bool) -> list[Row]:
    """Rows with as many images each as given, most of them one, and some none."""
    rows: list[Row] = []
    for place, number in enumerate(images):
        start = [1, *([config.align_token_index] if number else []), *[config.image_token_index] * (16 * number)]
        pixels = torch.rand(number, 3, 32, 32) if number else None
        level = 2 + place % 3 if levels and number else None
        answers = [[6, 7], [8, 9, 10]] if branches else [[6, *[7] * place]]
        rows.append(
            tuple(
                Example([*start, 5, 11 + place, *answer], [IGNORE_INDEX] * (len(start) + 2) + answer, pixels, level)
                for answer in answers
            )
        )
    return rows


CASES = pytest.mark.parametrize(
    ("levels", "images", "branches"),
    [
        (False, (1, 1, 0), False),
        (False, (2, 0, 1), False),
        (True, (1, 0, 1), False),
        (False, (0, 0), False),
        (True, (0, 0), False),
        (False, (1, 0, 1), True),
    ],
    ids=["gate", "several images", "levels", "text", "text for levels", "branches"],
)


@pytest.fixture(params=["padded", "packed", "filled up"])
def made(request: pytest.FixtureRequest, assembled: Callable) -> Callable[..., tuple[Any, dict[str, Any]]]:
    def make(levels: bool, images: Sequence[int], branches: bool) -> tuple[Any, dict[str, Any]]:
        model, processor = assembled("llama")
        model.train().requires_grad_(True)
        packed = request.param != "padded"
        multiple = 256 if request.param == "filled up" else 1
        model.set_attn_implementation({"text_config": NAME if packed else PADDED})
        collator = Collator(processor.tokenizer.pad_token_id, packed=packed, multiple=multiple)
        collate = WithLayout(collator, model.config)
        return model, collate(rows_of(model.config, levels, images, branches=branches))

    return make


def step(
    model: Any, batch: dict[str, Any], within: AbstractContextManager[Any]
) -> tuple[Tensor, dict[str, Tensor], list[float]]:
    """Loss, gradients, and the sums of the metrics, of one micro-batch."""
    model.zero_grad(set_to_none=True)
    metrics, watch = StepMetrics(model.config), LossWatch()
    counted = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
    with within:
        output = model(**batch, num_items_in_batch=counted)
        output.loss.backward()
        with torch.no_grad():
            metrics.update(batch, output)
        watch.see(output.loss, ["one"])
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    return output.loss.detach(), gradients, metrics.state()[1:]


@CASES
def test_nothing_is_read_back_in_a_training_step(
    made: Callable, levels: bool, images: Sequence[int], branches: bool
) -> None:
    model, batch = made(levels, images, branches)
    reads = Reads()
    step(model, batch, reads)
    assert reads.found == []


@CASES
def test_loss_gradients_and_metrics_are_the_same_without_a_layout(
    made: Callable, levels: bool, images: Sequence[int], branches: bool
) -> None:
    model, batch = made(levels, images, branches)
    loss, gradients, sums = step(model, batch, nullcontext())
    plain = {name: value for name, value in batch.items() if name != "layout"}
    expected_loss, expected, expected_sums = step(model, plain, reads := Reads())
    assert reads.found
    assert torch.equal(loss, expected_loss)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-6, atol=1e-7, msg=name)
    assert sums == pytest.approx(expected_sums, abs=1e-9)


@CASES
def test_attention_of_padded_rows_is_that_of_torch(
    assembled: Callable, levels: bool, images: Sequence[int], branches: bool
) -> None:
    model, processor = assembled("llama")
    model.train().requires_grad_(True)
    batch = Collator(processor.tokenizer.pad_token_id)(rows_of(model.config, levels, images, branches=branches))
    model.set_attn_implementation({"text_config": "sdpa"})
    expected_loss, expected, _ = step(model, batch, nullcontext())
    model.set_attn_implementation({"text_config": PADDED})
    loss, gradients, _ = step(model, batch, nullcontext())
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@CASES
def test_a_step_on_a_gpu_waits_for_nothing(made: Callable, levels: bool, images: Sequence[int], branches: bool) -> None:
    model, batch = made(levels, images, branches)
    model.to("cuda")
    batch = {name: value.to("cuda") for name, value in batch.items()}
    step(model, batch, nullcontext())
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = model(**batch, num_items_in_batch=torch.ones((), device="cuda"))
        output.loss.backward()
        with torch.no_grad():
            StepMetrics(model.config).update(batch, output)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        model.to("cpu")
