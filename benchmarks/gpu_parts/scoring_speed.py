"""Pairs scored a second with a CLIP of ViT-L/14-336's shape and random weights: the model, the opening, and all of it.

`benchmarks/scoring.py` says what its pictures and captions are; making those that are missing is not timed.
"""

import argparse
import os
import time

import scoring
import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from aligngpt.scoring.encoders import PairScorer
from gpu_parts.run import Run, free, seconds_of
from gpu_parts.training_speed import VIT_L

TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
BATCH_SIZES, BATCH_SIZE = (32, 64, 128, 256), 128
CAPTION_WORDS = 20


def scoring_speed(run: Run) -> None:
    """Measure the model alone, the workers alone and both together, by `score_source`."""
    towers = scoring.TINY if run.rehearse else {"vision": VIT_L, "text": TEXT}
    side = 224 if run.rehearse else VIT_L["image_size"]
    pairs, pictures, sizes = (64, 32, (16,)) if run.rehearse else (4096, 1024, BATCH_SIZES)
    workers = 1 if run.rehearse else min(16, os.cpu_count() or 1)
    with run.device:
        model, _, tokenizer = scoring.build_clip(towers)
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    dtype = "float32" if run.rehearse else "bfloat16"
    scorer = PairScorer(model, images, tokenizer, device=str(run.device), dtype=dtype)
    for size in sizes:
        run.attempt(f"batches of {size}", lambda size=size: _model(run, scorer, side, size))  # type: ignore[misc]
    free(run)
    rows = scoring.make_rows(scoring.make_pictures(pictures), pairs)
    if run.left(10):
        seconds = scoring.decoding_seconds(rows, scorer, workers)
        run.add(what="opening", workers=workers, pictures_s=len(rows) / seconds)
    if not run.left(20):
        run.remark("from files to scores: left out, no time")
        return
    options = argparse.Namespace(batch_size=BATCH_SIZE, workers=workers)
    started = time.perf_counter()
    found = scoring.score_ours(rows, scorer, options)
    seconds = time.perf_counter() - started
    if len(found) != len(rows) or not abs(found).max() <= 1.01:
        raise ArithmeticError(f"{len(rows)} pairs gave {len(found)} scores, or scores that are no cosines")
    run.add(
        what="files to scores", workers=workers, batch_size=BATCH_SIZE, pairs=len(rows), pairs_s=len(found) / seconds
    )


def _model(run: Run, scorer: PairScorer, side: int, size: int) -> None:
    pixels = torch.randn(size, 3, side, side, device=run.device, dtype=scorer.dtype)
    tokens = scorer.tokens([" ".join(["w1"] * CAPTION_WORDS)] * size)

    @torch.inference_mode()
    def both() -> None:
        scorer.model.get_image_features(pixel_values=pixels)
        scorer.model.get_text_features(**tokens)

    run.add(what="model", batch_size=size, pairs_s=size / seconds_of(run, both))
