"""Measure the time saved by cached vision features: `python benchmarks/features.py [--pictures 192]`.

Pre-trains for three epochs on generated images with captions, as `aligngpt train` does, once with
`cache_features: false` and once with `true` and an empty cache at the start. The models have random weights and the
shapes of SmolLM2-135M, with three of its thirty layers, and of CLIP ViT-B/32 at 224 pixels; 49 image tokens.

The printed line compares the seconds of the first epoch, which computes and writes the features, and of the later
ones, which read them: `features first=0.00 later=0.00 bytes_per_picture=0`, speed with the cache over speed without.
"""

import argparse
import json
import os
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from aligngpt.quiet import quiet_libraries
from aligngpt.training.recipe import Recipe, make_recipe
from aligngpt.training.run import train

EPOCHS, BATCH = 3, 16
WORDS = [f"word{number}" for number in range(1000)]


def main() -> None:
    """Make backbones and images, train twice, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=192, help=f"a multiple of {BATCH} (default: %(default)s)")
    pictures = parser.parse_args().pictures
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["ALIGNGPT_CACHE"] = str(root / "cache")
        make_backbones(root)
        make_data(root, pictures)
        seconds = {}
        for cached in (False, True):
            recipe = recipe_of(root, cached=cached)
            train(recipe)
            seconds[cached] = seconds_of_epochs(Path(recipe.output) / "pretrain" / "metrics.jsonl")
        files = [one for one in (root / "cache" / "features").rglob("*.safetensors")]
        size = sum(one.stat().st_size for one in files) // len(files)
    first, later = (sum(seconds[False][part]) / sum(seconds[True][part]) for part in (slice(0, 1), slice(1, None)))
    print(f"features first={first:.2f} later={later:.2f} bytes_per_picture={size}")


def make_backbones(root: Path) -> None:
    """Write a language model with its tokenizer and a vision tower with its preprocessor, with random weights."""
    marks = ["<unk>", "<s>", "</s>"]
    vocabulary = {word: place for place, word in enumerate([*marks, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(root / "words")
    text = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=3,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49_152,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(text).save_pretrained(root / "words")
    CLIPVisionModel(CLIPVisionConfig(image_size=224, patch_size=32)).save_pretrained(root / "tower")
    CLIPImageProcessor().save_pretrained(root / "tower")


def make_data(root: Path, pictures: int) -> None:
    """Write images of 400 × 300 pixels, each with a caption of twenty words."""
    generator = np.random.default_rng(0)
    records = []
    for number in range(pictures):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((400, 300)).save(root / f"{number}.jpg")
        caption = " ".join(generator.choice(WORDS, 20))
        records.append({"image": f"{number}.jpg", "caption": caption, "similarity": number % 8})
    (root / "captions.json").write_text(json.dumps(records))


def recipe_of(root: Path, *, cached: bool) -> Recipe:
    """The recipe of pre-training with these backbones and images."""
    output = root / f"run-{cached}"
    shutil.rmtree(output, ignore_errors=True)
    return make_recipe(
        {
            "model": {"vision_tower": str(root / "tower"), "language_model": str(root / "words")},
            "pretrain": {
                "data": str(root / "captions.json"),
                "train": ["projector", "level_table"],
                "chat_template": "plain",
                "epochs": EPOCHS,
                "batch_size": BATCH,
                "learning_rate": 1e-3,
                "precision": "float32",
                "log_steps": 1,
                "cache_features": cached,
            },
            "output": str(output),
        }
    )


def seconds_of_epochs(metrics: Path) -> list[float]:
    """Seconds of each epoch; the first excludes its first step, in which everything is set up."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = len(lines) // EPOCHS
    ends = [lines[0]["seconds"], *(lines[(epoch + 1) * steps - 1]["seconds"] for epoch in range(EPOCHS))]
    return [after - before for before, after in pairwise(ends)]


if __name__ == "__main__":
    main()
