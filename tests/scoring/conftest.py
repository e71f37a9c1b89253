"""Tiny random models that score pairs, and small files of pairs with their pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_models import IMAGE_SIZE, VISION
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.score import ScoreSummary, score_file

# 0 opens a text, 1 ends and pads it, as the configurations below say.
MARKS = ["<s>", "</s>", "<unk>"]
CAPTION_WORDS = "a red green blue yellow circle square shape on the left of right big two no is".split()  # noqa: SIM905
MAX_TEXT_TOKENS = 12
TOWER: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": len(MARKS) + len(CAPTION_WORDS),
    "max_position_embeddings": MAX_TEXT_TOKENS,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def build_caption_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*MARKS, *CAPTION_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def scattered(model: PreTrainedModel) -> PreTrainedModel:
    """The model with weights so large that no two pictures and no two texts are alike to it."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture(scope="session")
def scorer_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny `clip` or `siglip` with its image processor and tokenizer."""
    root = tmp_path_factory.mktemp("scorers")
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}

    def make(kind: str) -> Path:
        folder = root / kind
        if not folder.exists():
            torch.manual_seed(3)
            if kind == "siglip":
                config = transformers.SiglipConfig(vision_config=dict(VISION), text_config=dict(TOWER))
                SiglipImageProcessorPil(size=side).save_pretrained(folder)
            else:
                config = transformers.CLIPConfig(vision_config=dict(VISION), text_config=dict(TOWER), projection_dim=16)
                CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side).save_pretrained(folder)
            scattered(transformers.AutoModel.from_config(config)).save_pretrained(folder)
            build_caption_tokenizer().save_pretrained(folder)
        return folder

    return make


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
