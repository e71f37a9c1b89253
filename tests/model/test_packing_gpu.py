"""Packed rows on a GPU: the kernels are exact there, and training is what it is on padded rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_rows import rows_for
from tiny_backbones import save_language_model
from transformers import Gemma2Config, LlamaConfig, MistralConfig, PretrainedConfig

from aligngpt.data.batches.collate import Collator
from aligngpt.model.assembling import assemble
from aligngpt.model.modeling import IGNORE_INDEX
from aligngpt.model.packing.attention import NAME
from aligngpt.model.packing.leaks import can_pack
from aligngpt.model.packing.self_check import kernel_trouble

DEVICE = torch.device("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")]

HEADS = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2}
LAYERS: dict[str, PretrainedConfig] = {
    "narrow heads": LlamaConfig(**HEADS, head_dim=64),
    "wide heads, all their own": LlamaConfig(hidden_size=1024, num_attention_heads=8, num_key_value_heads=8),
    "a number of heads that is no power of two": LlamaConfig(
        hidden_size=576, num_attention_heads=9, num_key_value_heads=3
    ),
    "window": MistralConfig(**HEADS, head_dim=128, sliding_window=4096),
    "window and soft cap": Gemma2Config(**HEADS, head_dim=64, attn_logit_softcapping=20.0),
}
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@BOTH
@pytest.mark.parametrize("layer", LAYERS)
def test_the_kernel_of_the_device_is_exact(layer: str, dtype: torch.dtype) -> None:
    assert kernel_trouble(LAYERS[layer], DEVICE, dtype) is None


@BOTH
@pytest.mark.parametrize("language", ["llama", "exaone4"])
def test_a_language_model_can_pack_on_the_device(tmp_path: Path, language: str, dtype: torch.dtype) -> None:
    model = save_language_model(tmp_path, language, head_dim=32).model.to(DEVICE, dtype)
    assert can_pack(model, 16)


@BOTH
def test_a_layer_that_reads_across_samples_is_found_on_the_device(tmp_path: Path, dtype: torch.dtype) -> None:
    assert not can_pack(save_language_model(tmp_path, "lfm2").model.to(DEVICE, dtype), 16)


@pytest.mark.parametrize("language", ["llama", "exaone4"])
def test_a_packed_row_trains_as_padded_rows(tmp_path: Path, tower_folder: Callable[[str], Path], language: str) -> None:
    save_language_model(tmp_path, language, head_dim=32)
    model, processor = assemble(tower_folder("clip"), tmp_path, chat_template="plain")
    model.to(DEVICE).train()
    # With levels: the gate would read the instructions of a row together.
    rows = rows_for(model, levels=True)
    counted = sum(label != IGNORE_INDEX for row in rows for one in row for label in one.labels)
    pad = processor.tokenizer.pad_token_id
    padded = [Collator(pad)([(one,)]) for row in rows for one in row]
    exact = learned(model, padded, counted, torch.float32)
    rounded = learned(model, padded, counted, torch.bfloat16)
    model.set_attn_implementation({"text_config": NAME})
    packed = [Collator(pad, packed=True)(rows)]
    loss, gradient = learned(model, packed, counted, torch.float32)
    assert loss == pytest.approx(exact[0], rel=1e-4)
    assert apart(gradient, exact[1]) < 1e-6
    loss, gradient = learned(model, packed, counted, torch.bfloat16)
    assert loss == pytest.approx(exact[0], rel=0.02)
    # Rounding alone takes padded rows this far.
    assert apart(gradient, exact[1]) < 3 * apart(rounded[1], exact[1]) + 2e-3


def learned(model: Any, batches: list[dict[str, Any]], counted: int, dtype: torch.dtype) -> tuple[float, torch.Tensor]:
    """The loss of some batches and its gradient."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        moved = {name: value.to(DEVICE) for name, value in batch.items()}
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            loss = model(**moved, num_items_in_batch=counted).loss
        loss.backward()
        total += loss.item()
    held = [torch.zeros_like(one) if one.grad is None else one.grad for one in model.parameters()]
    return total, torch.cat([one.flatten().double() for one in held])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """One minus the cosine of two gradients."""
    return 1 - torch.cosine_similarity(one, other, dim=0).item()
