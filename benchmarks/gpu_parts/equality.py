"""Whether tiny models learn the same from packed rows, in each way, as from padded ones, on this device.

Padded rows in float32 are the truth; padded rows in bfloat16 tell how far its rounding alone goes, and packed rows in
bfloat16 may go a little farther. Two controls, a row as one sample and branches without their prefix, must go much
farther: otherwise the comparison would see nothing.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import training
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
)

from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.rows import rows_of
from aligngpt.model.configuration import AlignGPTConfig
from aligngpt.model.modeling import IGNORE_INDEX, AlignGPTForConditionalGeneration
from aligngpt.model.packing.attention import NAME
from aligngpt.model.packing.leaks import can_pack
from aligngpt.model.packing.pieces import Piece, Pieces, Way
from gpu_parts.attention import ways_on
from gpu_parts.run import Run, free

SAMPLES, WINDOW = 12, 48
# As large as 0.15: with transformers' 0.02 attention would hardly change anything.
TEXT = {
    **{"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512, "max_position_embeddings": 2048},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.15},
}
VISION = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"image_size": 64, "patch_size": 8},
}
HALF = ["sliding_attention", "full_attention"] * 2
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**TEXT),
    "qwen3, window in half the layers": lambda: Qwen3Config(
        **TEXT, use_sliding_window=True, sliding_window=WINDOW, layer_types=HALF
    ),
    "mistral, window": lambda: MistralConfig(**TEXT, sliding_window=WINDOW),
    "gemma3, window in half the layers": lambda: Gemma3TextConfig(**TEXT, sliding_window=WINDOW, layer_types=HALF),
    "gemma2, window in half the layers, soft cap": lambda: Gemma2Config(
        **TEXT, sliding_window=WINDOW, layer_types=HALF, attn_logit_softcapping=2.0
    ),
}
LOSS_DIFFERS, COSINE_SLACK, ROUNDING = 0.02, 2e-3, 3.0
"""Largest relative difference of a loss; 1 - cosine of the gradients may be `ROUNDING` times that of padded rows in
bfloat16, plus `COSINE_SLACK`."""

Learned = tuple[float, Tensor]


def equality(run: Run) -> None:
    """Compare every family; a way whose gradients differ is refused."""
    size = training.Size(TEXT, VISION, SAMPLES, SAMPLES)
    work = training.draw_work(size, 2, SAMPLES, 10)
    families = list(FAMILIES)[:2] if run.rehearse else list(FAMILIES)
    ways = ways_on(run)
    for family in families:
        if not run.left(10):
            run.remark("the time was over before all families were tried")
            return
        run.attempt(family, partial(_compare, run, family, work, ways))
        free(run)


def _compare(run: Run, family: str, work: training.Work, ways: Sequence[Way]) -> None:
    torch.manual_seed(0)
    config = AlignGPTConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=FAMILIES[family](),
        image_token_index=training.IMAGE,
        image_seq_length=work.size.image_tokens,
        alignment="none",
        align_token_index=-1,
    )
    with run.device:
        model = AlignGPTForConditionalGeneration(config).to(run.device).train()
    longest = max(len(example.input_ids) for example in work.examples)
    counted = sum(label != IGNORE_INDEX for example in work.examples for label in example.labels[1:])
    padded = [Collator(training.PAD)([(example,)]) for example in work.examples]
    packs = can_pack(model.model.language_model, longest)
    truth = learned(run, model, padded, counted, torch.float32)
    rounded = learned(run, model, padded, counted, torch.bfloat16)
    allowed = ROUNDING * (1 - cosine(truth, rounded)) + COSINE_SLACK
    run.add(family=family, layout="padded", can_pack=packs, loss=truth[0], cosine=cosine(truth, rounded))
    if not packs:
        run.fail(f"{family}: can_pack refuses it here, so that it would be trained padded")
    model.set_attn_implementation({"text_config": NAME})
    rows = [tuple(work.examples[place] for place in members) for members in rows_of(work.samples, 10)]
    packed = Collator(training.PAD, packed=True)(rows)
    given: Pieces = packed["pieces"]
    for name, pieces in controls(given.pieces).items():
        found = learned(run, model, [packed | {"pieces": pieces}], counted, torch.float32)
        run.add(family=family, layout=f"control: {name}", loss=found[0], cosine=cosine(truth, found))
        if cosine(truth, found) > 1 - 3 * allowed:
            raise ArithmeticError(f"the control '{name}' learns the same as the truth: the comparison sees nothing")
    for way in ways:
        if not (way == "varlen" and getattr(config.text_config, "attn_logit_softcapping", None)):
            given.way = way
            run.attempt(f"{family}, {way}", partial(_way, run, family, way, model, packed, counted, truth, allowed))


def _way(
    run: Run, family: str, way: Way, model: Any, packed: dict[str, Any], counted: int, truth: Learned, allowed: float
) -> None:
    found = learned(run, model, [packed], counted, torch.bfloat16)
    differs, alike = abs(found[0] / truth[0] - 1), cosine(truth, found)
    right = differs <= LOSS_DIFFERS and 1 - alike <= allowed
    run.add(family=family, layout=way, loss_differs=differs, cosine=alike, at_least=1 - allowed, right=right)
    if not right:
        run.refuse(way, f"{family}: the loss differs by {differs:.2g}, the gradient's cosine is {alike:.6f}")


def controls(pieces: Sequence[Piece]) -> dict[str, Pieces]:
    """The row with pieces that are wrong: one sample from end to end, and branches that do not see their prefix."""
    alone = Pieces([Piece(piece.start, piece.stop, piece.start, piece.start) for piece in pieces])
    whole = Pieces([Piece(0, pieces[-1].stop, 0, 0)])
    whole.way = alone.way = "mask"
    return {"one sample": whole, "no prefix": alone}


def learned(run: Run, model: Any, batches: Sequence[dict[str, Any]], counted: int, dtype: torch.dtype) -> Learned:
    """Loss over all tokens that count, and the gradient of all parameters, in float64 on the CPU."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        moved = {name: value.to(run.device) for name, value in batch.items()}
        with torch.autocast(run.device.type, dtype, enabled=dtype != torch.float32):
            loss = model(**moved, num_items_in_batch=counted, use_cache=False).loss
        loss.backward()
        total += float(loss)
    grads = [
        (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten().double().cpu()
        for parameter in model.parameters()
    ]
    return total, torch.cat(grads)


def cosine(one: Learned, other: Learned) -> float:
    """Cosine of two gradients."""
    return float(torch.cosine_similarity(one[1], other[1], dim=0))
