"""Token ids, labels, prompts and pixel values of the published code, if present (see test_golden.py)."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from aligngpt.data.batches.examples import tokenize
from aligngpt.data.images.opening import open_image
from aligngpt.data.records.sample import parse_record
from aligngpt.model.processing import ALIGN_TOKEN, IMAGE_TOKEN, AlignGPTProcessor
from aligngpt.model.templates import NAMED_TEMPLATES, PLAIN, VICUNA
from aligngpt.model.vision_towers import load_vision_tower
from aligngpt.model.vocabulary import load_tokenizer

GOLDEN = Path(os.environ.get("ALIGNGPT_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
TEXT = GOLDEN / "text"
ORIGINAL_IMAGE = -200

pytestmark = pytest.mark.skipif(not (TEXT / "labels.json").is_file(), reason=f"{TEXT} does not exist")


def cases(name: str, key: str) -> list[Any]:
    return json.loads((TEXT / name).read_text(encoding="utf-8"))[key] if (TEXT / name).is_file() else []


@pytest.fixture(scope="module")
def processor() -> AlignGPTProcessor:
    tower = load_vision_tower(GOLDEN / "vision_tower")
    tokenizer = load_tokenizer(TEXT, with_align=True)
    # One token per image, as in the original's ids before it inserts the image tokens.
    return AlignGPTProcessor(
        image_processor=tower.image_processor, tokenizer=tokenizer, image_seq_length=1, chat_template=VICUNA
    )


@pytest.mark.parametrize("kind", ["v1", "plain"])
def test_ids_and_labels_are_the_original_s(processor: AlignGPTProcessor, kind: str) -> None:
    template = {"v1": VICUNA, "plain": PLAIN}[kind]
    image, align = processor.tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, ALIGN_TOKEN])
    found = cases("labels.json", kind)
    assert found
    for case in found:
        sample = parse_record(case["record"])
        ids, labels = tokenize(sample.messages(), processor, chat_template=template)
        # The alignment token is ours: the original inserts its embedding later, at position 1.
        assert [place for place, index in enumerate(ids) if index == align] == ([1] if sample.images else [])
        kept = [(index, label) for index, label in zip(ids, labels, strict=True) if index != align]
        assert [ORIGINAL_IMAGE if index == image else index for index, _ in kept] == case["input_ids"], case["record"]
        assert [label for _, label in kept] == case["labels"], case["record"]


@pytest.mark.parametrize(
    ("theirs", "template"),
    [
        ("vicuna_v1", "vicuna"),
        ("llava_v1", "llava_v1"),
        ("llava_v0", "llava_v0"),
        ("v0", "llava_v0"),
        ("llava_llama_2", "llava_llama_2"),
    ],
)
def test_prompts_are_the_original_s(processor: AlignGPTProcessor, theirs: str, template: str) -> None:
    found = cases("prompts.json", theirs)
    assert found
    for case in found:
        texts = [turn for turn in case["turns"] if turn is not None]
        messages = []
        for place, text in enumerate(texts):
            images = [{"type": "image"}] * text.count("<image>")
            words = {"type": "text", "text": text.replace("<image>", "").strip()}
            messages.append({"role": "assistant" if place % 2 else "user", "content": [*images, words]})
        prompt = processor.apply_chat_template(
            messages, NAMED_TEMPLATES[template], add_generation_prompt=len(texts) % 2 == 1, tokenize=False
        )
        assert prompt.removeprefix("<s>") == case["prompt"]


@pytest.mark.parametrize("how", ["pad", "square"])
def test_pixels_are_the_original_s(how: str) -> None:
    expected = {name: tensor for name, tensor in load_file(TEXT / "pixels.safetensors").items() if how in name}
    assert expected
    tower = load_vision_tower(GOLDEN / "vision_tower", pad_images=how == "pad")
    for name, tensor in expected.items():
        place = next(character for character in reversed(name) if character.isdigit())
        pictures: list[Image.Image] = [open_image(TEXT / f"image_{place}.png")]
        found = tower.image_processor(pictures, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(found, tensor.reshape(found.shape), rtol=0, atol=1e-5)
