"""Tiny random models that score pairs, as Hugging Face folders with their image processors and tokenizers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import IMAGE_SIZE, VISION
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

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
