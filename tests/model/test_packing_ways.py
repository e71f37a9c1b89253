"""Ways to compute attention over packed rows, their choice, and the test of a device's kernel."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_rows import gradients, rows_for
from tiny_backbones import save_language_model
from torch.nn.functional import scaled_dot_product_attention

from aligngpt.data.batches.collate import Collator
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.model.packing import attention, self_check, ways
from aligngpt.model.packing.attention import NAME, packed_attention
from aligngpt.model.packing.leaks import can_pack
from aligngpt.model.packing.pieces import Piece, Pieces
from aligngpt.model.packing.self_check import kernel_trouble

PIECES = (Piece(0, 7, 0, 0), Piece(7, 12, 0, 7), Piece(12, 15, 0, 7), Piece(15, 16, 15, 15), Piece(16, 29, 16, 16))
CPU = torch.device("cpu")


def emulated(bottom_right: bool = True, shares_heads: bool = True) -> Callable[..., torch.Tensor]:
    """What torch's kernel is documented to do, sequence by sequence; or a kernel that is wrong in one thing."""

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert max_q == cu_seq_q.diff().max() and max_k == cu_seq_k.diff().max()
        assert window_size[1] == 0
        assert enable_gqa is (query.shape[1] != key.shape[1])
        if not shares_heads:
            key, value = (tensor[:, :1].expand(-1, query.shape[1], -1) for tensor in (key, value))
        seen = []
        for number in range(len(cu_seq_q) - 1):
            q = query[cu_seq_q[number] : cu_seq_q[number + 1]].transpose(0, 1)[None]
            k, v = (one[cu_seq_k[number] : cu_seq_k[number + 1]].transpose(0, 1)[None] for one in (key, value))
            shift = k.shape[2] - q.shape[2] if bottom_right else 0
            back = torch.arange(q.shape[2])[:, None] + shift - torch.arange(k.shape[2])
            mask = (back >= 0) & ((back <= window_size[0]) | (window_size[0] < 0))
            grouped = q.shape[1] != k.shape[1]
            seen.append(scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=grouped)[0].transpose(0, 1))
        return torch.cat(seen)

    return kernel


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts an emulated kernel in the place of torch's, which has no CPU version, and chooses it everywhere."""

    def put(choose: bool = True, **wrong: bool) -> None:
        monkeypatch.setattr(ways.torch_varlen, "varlen_attn", emulated(**wrong))
        if choose:
            monkeypatch.setattr(attention, "way_for", lambda query, **layer: "varlen")

    return put


def tensors(heads: int = 4, shared: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, number, 29, 8, generator=generator) for number in (heads, shared, shared)]


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 3, 9, 40])
@pytest.mark.parametrize("way", ["varlen", "loop", "flex"])
def test_every_way_gives_what_a_mask_over_the_row_gives(
    kernel: Callable, way: Any, window: int | None, softcap: float | None
) -> None:
    kernel(choose=False)
    if way == "varlen" and softcap is not None:
        pytest.skip("the kernel has no soft cap")
    found = []
    for one in ("mask", way):
        pieces = Pieces(PIECES)
        pieces.way = one
        # FlexAttention has no backward pass on a CPU.
        held = [tensor.requires_grad_(way != "flex") for tensor in tensors()]
        seen, _ = packed_attention(
            torch.nn.Identity(), *held, None, pieces=pieces, sliding_window=window, softcap=softcap, scaling=0.4
        )
        found.append([seen, *(torch.autograd.grad(seen.square().sum(), held) if way != "flex" else ())])
    for expected, tensor in zip(*found, strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)


def test_a_mask_over_the_row_is_the_rule() -> None:
    sees = ways.dense_mask(Pieces(PIECES), 4, CPU)
    sample = [0] * 7 + [1] * 5 + [2] * 3 + [3] + [4] * 13
    place = [*range(7), *range(7, 12), *range(7, 10), 0, *range(13)]
    for one in range(29):
        for other in range(29):
            within = sample[one] == sample[other] or (sample[other] == 0 and sample[one] in (1, 2))
            expected = within and other <= one and place[one] - place[other] < 4
            assert sees[one, other] == expected, (one, other)


@pytest.mark.parametrize("way", ["varlen", "loop"])
@pytest.mark.parametrize("language", ["llama", "qwen3", "mistral", "gemma2", "gemma3"])
def test_branches_and_windows_train_as_samples_apart(
    assembled: Callable, kernel: Callable, language: str, way: str
) -> None:
    if way == "varlen" and language == "gemma2":
        pytest.skip("the kernel has no soft cap")
    model, processor = assembled(language)
    model.train()
    # With levels: the gate would read the instructions of a row together.
    rows = rows_for(model, levels=True)
    counted = sum(label != IGNORE_INDEX for row in rows for one in row for label in one.labels)
    token = processor.tokenizer.pad_token_id
    loss, expected = gradients(model, [Collator(token)([(one,)]) for row in rows for one in row], counted)
    kernel(choose=way == "varlen")
    model.set_attn_implementation({"text_config": NAME})
    packed_loss, found = gradients(model, [Collator(token, packed=True)(rows)], counted)
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    flat, other = (torch.cat([one[name].flatten() for name in expected]) for one in (expected, found))
    assert torch.cosine_similarity(flat, other, dim=0) > 0.9999
    assert other.norm() == pytest.approx(flat.norm().item(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_that_reads_across_samples_is_found_in_any_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    assert can_pack(save_language_model(tmp_path / "llama", "llama").model.to(dtype), 16)
    # Its convolutions read the tokens before, whosesoever they are.
    assert not can_pack(save_language_model(tmp_path / "lfm2", "lfm2").model.to(dtype), 16)


def test_gradients_of_a_shared_prefix_are_summed_in_single_precision() -> None:
    places = torch.zeros(4096, dtype=torch.long)
    tensor = torch.ones(1, 2, dtype=torch.bfloat16, requires_grad=True)
    # In bfloat16 the sum would stop growing at 256.
    ways._gathered(tensor, places).sum().backward()
    assert tensor.grad is not None
    assert tensor.grad.tolist() == [[4096.0, 4096.0]]


def test_which_way_fits() -> None:
    def chosen(
        device: str, dtype: torch.dtype, width: int = 64, softcap: float | None = None, dropout: float = 0
    ) -> str:
        class Query:
            shape = (1, 2, 3, width)

        query: Any = Query()
        query.device, query.dtype = torch.device(device), dtype
        return ways.way_for(query, softcap=softcap, dropout=dropout)

    half = torch.bfloat16
    assert chosen("cuda", half) == "varlen"
    assert chosen("cuda", half, softcap=50.0) == chosen("cuda", torch.float32) == "flex"
    assert chosen("cuda", half, width=100) == chosen("cuda", half, width=512) == "flex"
    assert chosen("cpu", half) == chosen("mps", half) == chosen("cuda", half, dropout=0.1) == "loop"


def test_a_wrong_kernel_is_found(kernel: Callable, assembled: Callable) -> None:
    config = assembled("mistral")[0].config.text_config
    assert config.num_key_value_heads < config.num_attention_heads
    assert kernel_trouble(config, CPU, torch.float32) is None
    kernel()
    assert kernel_trouble(config, CPU, torch.float32) is None
    assert kernel_trouble(config, CPU, torch.bfloat16) is None
    for wrong in ({"bottom_right": False}, {"shares_heads": False}):
        kernel(**wrong)
        assert kernel_trouble(config, CPU, torch.float32) == "is not exact"
        assert kernel_trouble(config, CPU, torch.bfloat16) == "is not exact"


def test_a_kernel_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, assembled: Callable) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no C compiler was found\nby Triton")

    config = assembled("mistral")[0].config.text_config
    monkeypatch.setattr(self_check, "packed_attention", failing)
    assert kernel_trouble(config, CPU, torch.float32) == "fails (no C compiler was found)"


def test_lengths_and_places_follow_from_the_pieces() -> None:
    pieces = Pieces(PIECES)
    assert pieces.queries.tolist() == [0, 7, 12, 15, 16, 29]
    assert pieces.keys.tolist() == [0, 7, 19, 29, 30, 43]
    assert (pieces.longest_query, pieces.longest_key) == (13, 13)
    places = [*range(7), *range(12), *range(7), 12, 13, 14, 15, *range(16, 29)]
    assert pieces.key_places is not None and pieces.key_places.tolist() == places
    assert pieces.samples == 3
    assert pieces.sample_of_token.tolist() == [[0] * 15 + [1] + [2] * 13]
    assert Pieces(PIECES[3:4]).key_places is None
    moved = pieces.to("meta")
    assert moved.queries.device.type == "meta" and pieces.queries.device.type == "cpu"
    assert moved.pieces == pieces.pieces
