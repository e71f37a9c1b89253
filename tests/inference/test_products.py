"""Products of a few rows: they are torch's own, whichever library computes them, and take memory only where it is."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from aligngpt.inference.engine import Engine, Request, Sampling
from aligngpt.inference.generation import products
from aligngpt.inference.generation.pool import JointPool
from aligngpt.inference.generation.products import InPlaceOf, Product, order_all

ONE_DNN = products._one_dnn() is not None
needs_one_dnn = pytest.mark.skipif(not ONE_DNN, reason="this torch has no linear layer by oneDNN")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of rows that oneDNN multiplied."""
    rows: list[int] = []
    one_dnn = products._one_dnn()
    assert one_dnn is not None

    def product(inputs: Tensor, *rest: object) -> Tensor:
        rows.append(len(inputs))
        return one_dnn.product(inputs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(products, "_one_dnn", lambda: one_dnn._replace(product=product))
    return rows


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_product_is_the_linear_layer(ordered: bool, with_bias: bool, dtype: torch.dtype) -> None:
    # A part of a larger tensor, as the parameters of joined projections are.
    weight = torch.randn(200, 96, dtype=dtype)[50:150]
    bias = torch.randn(100, dtype=dtype) if with_bias else None
    product = Product(weight, bias)
    if ordered:
        product.order()
    for rows in (1, 2, 3, 8, 33):
        inputs = torch.randn(rows, 96, dtype=dtype)
        torch.testing.assert_close(product(inputs), F.linear(inputs, weight, bias), atol=2e-5, rtol=1e-5)


@needs_one_dnn
@torch.inference_mode()
def test_several_rows_are_left_to_one_dnn_and_one_with_ordered_weights_only(counted: list[int]) -> None:
    product = Product(torch.randn(48, 64))
    for rows in (1, 2, 8):
        product(torch.randn(rows, 64))
    assert counted == [2, 8]
    product.order()
    product(torch.randn(1, 64))
    assert counted == [2, 8, 1]
    counted.pop()
    Product(torch.randn(48, 64, dtype=torch.bfloat16))(torch.randn(2, 64, dtype=torch.bfloat16))
    assert counted == [2, 8]


@torch.inference_mode()
def test_a_torch_without_it_computes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_one_dnn", lambda: None)
    weight, inputs = torch.randn(48, 64), torch.randn(3, 64)
    product = Product(weight)
    assert not order_all([product])
    assert torch.equal(product(inputs), F.linear(inputs, weight))


def test_another_operation_under_this_name_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(inputs: Tensor, weight: Tensor, *_: object) -> Tensor:
        return inputs @ torch.zeros(weight.shape).T

    monkeypatch.setattr(torch.ops.mkldnn._linear_pointwise, "default", wrong)
    assert products._one_dnn.__wrapped__() is None


@needs_one_dnn
@torch.inference_mode()
def test_weights_are_copied_only_if_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [Product(torch.randn(48, 64)), Product(torch.randn(64, 48))]
    for free, expected in ((None, False), (2 * 4 * 48 * 64 * 4 - 1, False), (2 * 4 * 48 * 64 * 4, True)):
        monkeypatch.setattr(products, "available_memory", lambda free=free: free)
        assert order_all(made) is expected
        assert all((one._ordered is not None) is expected for one in made)


@needs_one_dnn
@torch.inference_mode()
def test_only_the_layer_with_these_weights_is_replaced(counted: list[int]) -> None:
    head, other = torch.nn.Linear(64, 48), torch.nn.Linear(64, 48)
    inputs = torch.randn(3, 64)
    expected = head(inputs), other(inputs)
    with InPlaceOf(Product(head.weight, head.bias)):
        found = head(inputs), other(inputs)
        assert counted == [3]
    torch.testing.assert_close(found, expected)


@needs_one_dnn
@pytest.mark.parametrize("language", ["llama", "qwen2", "qwen3"])
def test_a_batch_with_copied_weights_is_answered_as_its_requests_alone(
    assembled: Callable, pictures: list[Image.Image], language: str, counted: list[int]
) -> None:
    sampling = Sampling(max_new_tokens=12)
    with Engine(*assembled(language)) as engine:
        engine.model.generation_config.eos_token_id = None
        asked = [
            Request.ask(question, pictures[0]) for question in ("what colour is it ?", "is it red ?", "how many ?")
        ]
        alone = [engine.answer([one], sampling)[0].text for one in asked]
        # The step itself is checked with two rows.
        assert set(counted) == {1, 2}
        counted.clear()
        assert [one.text for one in engine.answer(asked, sampling)] == alone
        assert counted and set(counted) == {3}
        pool = engine.loop._pool
        assert isinstance(pool, JointPool) and pool._fast is not None
        assert pool._fast.head._ordered is not None
