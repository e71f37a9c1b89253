"""Pair scorers that are loaded already, a text tower, and small files of pairs with their pictures."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_scorers import CAPTION_WORDS, TOWER, build_caption_tokenizer, scattered

from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.manifest import Manifest
from aligngpt.scoring.score_files import PartSummary, Reject, part_table, write_part

SHARD_SIZE = 3


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
def write_scores(tmp_path: Path) -> Callable[..., Path]:
    """A folder as `score_source` leaves it of `count` records, three a shard; those without a score are rejected."""

    def make(source: Path, scores: Mapping[int, float], count: int, name: str = "scores") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        total = PartSummary()
        starts = range(0, count, SHARD_SIZE)
        for shard, start in enumerate(starts):
            records = range(min(SHARD_SIZE, count - start))
            scored = [record for record in records if start + record in scores]
            rows = part_table(
                record=scored,
                id=[f"id-{start + record}" for record in scored],
                score=np.array([scores[start + record] for record in scored], dtype=np.float32),
                caption_tokens=[3] * len(scored),
                size=[(4, 4)] * len(scored),
                image_hash=["00"] * len(scored),
            )
            rejects = [Reject(record, None, "missing", "gone") for record in records if record not in scored]
            total += write_part(folder, shard, rows, rejects)
        Manifest(
            source={"kind": "llava", "fingerprint": hashlib.sha256(source.read_bytes()).hexdigest()},
            shards=len(starts),
            cut="",
            model="model",
            model_fingerprint="",
            preprocessing={},
            dtype="float32",
            batch_size=4,
            embeddings=False,
            finished=total,
        ).write(folder)
        return folder

    return make
