"""Pair scorers that are loaded already, a text tower, and small files of pairs with their pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_scorers import CAPTION_WORDS, TOWER, build_caption_tokenizer, scattered

from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.score import ScoreSummary, score_file


@pytest.fixture(scope="session")
def text_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny BERT, 16 wide, with its tokenizer."""
    folder = tmp_path_factory.mktemp("text") / "bert"
    torch.manual_seed(4)
    config = transformers.BertConfig(**TOWER | {"hidden_size": 16, "max_position_embeddings": 40})
    scattered(transformers.BertModel(config)).save_pretrained(folder)
    build_caption_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def clip_scorer(scorer_folder: Callable[[str], Path]) -> PairScorer:
    return PairScorer.load(scorer_folder("clip"), device="cpu", dtype="float32")


@pytest.fixture
def captions() -> list[str]:
    """Six captions of different lengths."""
    return [
        "a red circle",
        "blue square on the left of a green circle",
        "no",
        "two big shape",
        "the yellow square is right",
        "a",
    ]


@pytest.fixture
def write_pairs(tmp_path: Path) -> Callable[..., Path]:
    """A file of pairs, each with a picture of its own, in a folder with these pictures."""

    def make(count: int, name: str = "pairs.jsonl", **changes: Any) -> Path:
        generator = np.random.default_rng(5)
        records = []
        for index in range(count):
            pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((40, 36)).save(tmp_path / f"{index}.png")
            caption = " ".join(generator.choice(CAPTION_WORDS, size=generator.integers(1, 8)))
            record = {"id": f"pair-{index}", "image": f"{index}.png", "caption": caption}
            records.append(record | changes.get(f"at_{index}", {}))
        source = tmp_path / name
        source.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return source

    return make


@pytest.fixture
def run(clip_scorer: PairScorer, tmp_path: Path) -> Callable[..., ScoreSummary]:
    """Score a file into a folder, four records a batch, and let most of them be rejected."""

    def call(source: Path, out: str = "out", **options: Any) -> ScoreSummary:
        settings = {"batch_size": 4, "max_reject_share": 0.9} | options
        return score_file(source, settings.pop("scorer", clip_scorer), tmp_path / out, **settings)

    return call
