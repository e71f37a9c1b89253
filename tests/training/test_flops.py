"""Operations of a training step: a count by hand, and what torch counts in a real forward and backward pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from language_families import LANGUAGES, save_language
from torch.utils.flop_counter import FlopCounterMode

from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.examples import Example
from aligngpt.data.batches.layouts import WithLayout
from aligngpt.model.assembling import assemble
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.packing.attention import NAME
from aligngpt.training.flops import Flops, ModelFlops, peak_of
from aligngpt.training.flops_plan import flops_lines
from aligngpt.training.loop.metrics import StepMetrics
from aligngpt.training.recipe import LoraRecipe
from aligngpt.training.setup.freezing import freeze_all_but
from aligngpt.training.setup.lora import add_lora

IGNORED = -100
WORDS, ANSWER = 20, 6


def batch_of(model: Any, processor: Any, rows: int = 2, *, packed: bool = False) -> dict[str, Any]:
    """Rows of the same length, so that nothing is padding."""
    config = model.config
    prompt = [1, config.align_token_index, *[config.image_token_index] * 16, *[5] * WORDS]
    example = Example([*prompt, *[6] * ANSWER], [IGNORED] * len(prompt) + [6] * ANSWER, torch.rand(1, 3, 32, 32), 2)
    collate = WithLayout(Collator(processor.tokenizer.pad_token_id, packed=packed), config)
    return collate([(example,)] * rows)


def counted_by_torch(model: Any, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What torch counts in a step, by module; the whole step is "Global"."""
    model.set_attn_implementation("eager")
    # torch does not know the sums in place with which the loss without logits forms the gradient of the head.
    monkeypatch.setattr(AlignGPTForConditionalGeneration, "_fuses_loss", lambda self: False)
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    return {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}


def by_us(model: Any, batch: dict[str, Any]) -> Flops:
    """Our count, with every token seeing its whole row, as torch computes it without a fused kernel."""
    layout = batch["layout"]
    rows, length = batch["input_ids"].shape
    seen = torch.full((rows * length,), length)
    return ModelFlops.of(model).of_batch(seen, len(layout.counted), encoded=rows, projected=rows)


def prepared(assembled: Callable, name: str, how: str) -> tuple[Any, Any]:
    model, processor = assembled(name)
    model.train()
    if how == "lora":
        add_lora(model, LoraRecipe(rank=4), seed=0)
    parts = {
        "stage 1": ["projector", "level_table"],
        "full": ["projector", "level_table", "gate", "language_model"],
        "lora": ["projector", "level_table", "gate", "language_model"],
        "tower": ["projector", "level_table", "gate", "language_model", "vision_tower"],
    }[how]
    freeze_all_but(model, parts, levels_given=how == "stage 1")
    return model, processor


@pytest.mark.parametrize("how", ["full", "stage 1", "lora", "tower"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "phi"])
def test_a_step_is_what_torch_counts(assembled: Callable, monkeypatch: pytest.MonkeyPatch, name: str, how: str) -> None:
    model, processor = prepared(assembled, name, how)
    batch = batch_of(model, processor)
    if how != "stage 1":
        del batch["alignment_level"]
    found, expected = by_us(model, batch), counted_by_torch(model, batch, monkeypatch)
    # The tower runs to its end, but what follows the features is of no use and left out of our count.
    unused = sum(
        count
        for module, count in expected.items()
        if module.endswith("vision_tower.encoder.layers.2") or module.endswith("vision_model.encoder.layers.2")
    )
    assert unused > 0
    assert sum(found) == pytest.approx(expected["Global"] - unused, rel=0.02)


def test_a_step_is_what_one_counts_by_hand(assembled: Callable) -> None:
    """Llama: 2 layers of width 32, 4 heads of 8 and 2 for keys, 48 inside. CLIP: width 24, 32 inside, 2 of 3 blocks."""
    model, processor = prepared(assembled, "llama", "full")
    batch = batch_of(model, processor, rows=1)
    length, patches = 2 + 16 + WORDS + ANSWER, 16
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
    seen = length * (length + 1) // 2
    vocabulary = model.lm_head.out_features
    block = 4 * 24 * 24 + 2 * 24 * 32
    tower = 2 * 3 * 8 * 8 * 24 * patches + 2 * (2 * block * 17 + 4 * 24 * 17**2)
    layout = batch["layout"]
    found = ModelFlops.of(model).of_batch(layout.keys_seen, len(layout.counted), encoded=1, projected=1)
    assert found == Flops(
        layers=3 * 2 * 2 * layer * length,
        attention=3 * 2 * 4 * 32 * seen,
        head=3 * 2 * 32 * vocabulary * ANSWER,
        tower=tower,
        projector=2 * 2 * patches * (24 * 32 + 32 * 32),
    )


@pytest.mark.parametrize("packed", [False, True])
def test_padding_and_other_samples_are_not_counted(assembled: Callable, packed: bool) -> None:
    model, processor = prepared(assembled, "llama", "full")
    config = model.config
    image = [config.align_token_index, *[config.image_token_index] * 16]

    def example(*words: int) -> Example:
        return Example([1, *image, 5, *words], [IGNORED] * 19 + list(words), torch.rand(1, 3, 32, 32), None)

    collate = WithLayout(Collator(processor.tokenizer.pad_token_id, packed=packed), config)
    rows = [(example(6, 7), example(8, 9, 10)), (example(6),)]
    layout = collate(rows)["layout"]
    # The first 18 tokens are shared; the token before the answer is in both branches.
    first = [*range(1, 19), *range(19, 22), *range(19, 23)]
    assert layout.keys_seen.tolist() == [*first, *range(1, 21)]
    assert layout.tokens == 45 and layout.images == 2
    assert len(layout.counted) == 6


def test_a_window_limits_what_is_seen(assembled: Callable) -> None:
    model, _ = assembled("mistral")
    window = model.config.text_config.sliding_window
    flops = ModelFlops.of(model)
    assert set(flops.attention) == {window}
    seen = torch.arange(1, 3 * window + 1)
    found = flops.of_batch(seen, 1, encoded=0, projected=0).attention
    assert found == flops.attention[window] * (window * (window + 1) / 2 + 2 * window * window)


def test_a_layer_may_have_its_own_number_of_experts(tower_folder: Callable, tmp_path: Path) -> None:
    save_language(tmp_path, LANGUAGES["hunyuan_v1_moe"])
    model, _ = assemble(tower_folder("clip"), tmp_path)
    text = model.config.text_config

    def layers(chosen: int | list[int]) -> float:
        text.moe_topk = chosen
        return ModelFlops.of(model).layers

    half = text.num_hidden_layers // 2
    assert layers(1) < layers([1] * half + [2] * half) == pytest.approx((layers(1) + layers(2)) / 2)


def test_cards_are_known_by_their_full_names() -> None:
    known = {
        "NVIDIA H200": 989e12,
        "NVIDIA H200 NVL": 835e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA GH200 480GB": 989e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA L4": 121e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA GeForce RTX 4090": 165e12,
        "NVIDIA GeForce RTX 4090 D": None,
        "NVIDIA GeForce RTX 4090 Laptop GPU": None,
        "NVIDIA GeForce RTX 3090 Ti": None,
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb": None,
        "NVIDIA T400": None,
        "Tesla V100-SXM2-16GB": None,
    }
    assert {name: peak_of(name) for name in known} == known


@pytest.mark.parametrize("packed", [False, True])
def test_the_metrics_have_the_speed_and_its_share_of_the_peak(
    assembled: Callable, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    model, processor = prepared(assembled, "llama", "full")
    batch = batch_of(model, processor, packed=packed)
    if packed:
        model.set_attn_implementation({"text_config": NAME})
    flops = ModelFlops.of(model)
    metrics = StepMetrics(model.config, flops=flops, peak=1e12)
    metrics.update(batch, model(**batch))
    monkeypatch.setattr("aligngpt.training.loop.metrics.time.monotonic", lambda: metrics.started + 0.001)
    figures = metrics.compute()
    layout = batch["layout"]
    step = sum(flops.of_batch(layout.keys_seen, len(layout.counted), encoded=2, projected=2))
    assert figures["tflops_per_second"] == pytest.approx(step / 0.001 / 1e12, rel=1e-3)
    assert figures["mfu"] == pytest.approx(step / 0.001 / 1e12, abs=1e-4) and figures["mfu"] > 0


def test_before_a_run_the_parts_add_up(assembled: Callable) -> None:
    flops = ModelFlops.of(prepared(assembled, "llama", "full")[0])
    first, second = flops_lines(flops, 4, tokens=44, counted=6, images=1, device=torch.device("cpu"))
    total = sum(flops.of_batch(torch.arange(1, 45), 6, encoded=1, projected=1))
    assert first.startswith(f"a step: {4 * total:.2e} floating-point operations (layers ")
    shares = [float(part.split()[-1].rstrip("%)")) for part in first.partition("(")[2].split(", ")]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert f"H200 {0.4 * 989e12 * 44 / total:,.0f}" in second and "A100" in second
