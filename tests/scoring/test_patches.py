"""A model that takes images as patches of any number (SigLIP 2 NaFlex) scores as in transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_models import build_tokenizer
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from aligngpt.data.images.reference import Picture
from aligngpt.scoring.encoders import PairScorer
from aligngpt.scoring.patches import inputs_of_patches, pixels_of
from aligngpt.scoring.picture_workers import PictureWorkers
from aligngpt.scoring.preparation import Prepared

SIZES = [(32, 32), (64, 16), (16, 90), (61, 40)]
CAPTIONS = ["a red dog", "two dogs", "red", "a blue square ."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("naflex")
    tokenizer = build_tokenizer("llama")
    tokenizer.pad_token, tokenizer.model_max_length = "</s>", 64
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 32}
    torch.manual_seed(0)
    config = transformers.Siglip2Config(text_config=text, vision_config=small | {"num_patches": 16, "patch_size": 8})
    transformers.Siglip2Model(config).save_pretrained(made)
    tokenizer.save_pretrained(made)
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=20).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


def test_scores_are_those_of_transformers_in_a_batch_and_alone(folder: Path, images: list[Image.Image]) -> None:
    scorer = PairScorer.load(folder, device="cpu", dtype="float32")
    model = transformers.Siglip2Model.from_pretrained(folder).eval()
    found = scorer.score(images, CAPTIONS)
    for image, caption, score in zip(images, CAPTIONS, found, strict=True):
        inputs = scorer.image_processor([image], return_tensors="pt")
        ids = scorer.tokenizer([caption], padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = model(input_ids=ids, **inputs)
        assert score == pytest.approx(float((out.image_embeds * out.text_embeds).sum()), abs=1e-5)
        assert score == pytest.approx(float(scorer.score([image], [caption])[0]), abs=1e-5)
    assert len({round(float(score), 4) for score in found}) == 4


def test_workers_prepare_the_same_patches(folder: Path, images: list[Image.Image], tmp_path: Path) -> None:
    scorer = PairScorer.load(folder, device="cpu", dtype="bfloat16")
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    pictures = [Picture(str(number), path=tmp_path / f"{number}.png") for number in range(len(images))]
    with PictureWorkers(scorer, 0, processes=False) as workers:
        prepared = list(workers.prepare(pictures))
        assert all(isinstance(one, Prepared) for one in prepared)
        pixels = workers.preparations[0].pixel_values([one.pixels for one in prepared if isinstance(one, Prepared)])
    assert torch.equal(pixels, scorer.pixel_values(images).bfloat16())
    assert scorer.pixel_features(pixels) == pytest.approx(scorer.image_features(images), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grids_of_any_size_are_exact_in_every_precision(dtype: torch.dtype) -> None:
    image = Image.new("RGB", (8 * 257, 8 * 3))
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=1000)
    expected = processor([image], return_tensors="pt")
    inputs = inputs_of_patches(pixels_of(processor, [image]).to(dtype))
    assert expected["spatial_shapes"].max() > 256
    assert torch.equal(inputs["spatial_shapes"], expected["spatial_shapes"])
    assert torch.equal(inputs["pixel_attention_mask"], expected["pixel_attention_mask"])
