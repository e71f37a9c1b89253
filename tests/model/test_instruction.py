"""Collator, labels, processor and engine agree on what the gate reads."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.examples import Example, tokenize
from aligngpt.inference.engine import Engine, Request
from aligngpt.model.modeling import IGNORE_INDEX

FIRST, ANSWER, SECOND = "what colour is the circle ?", "red", "how many are there ?"
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.mark.parametrize("language", ["llama", "qwen2", "llama_tied"])
def test_four_ways_to_the_gate_of_a_later_turn_are_one(
    assembled: Callable, asks: Callable, pictures: list[Image.Image], language: str
) -> None:
    model, processor = assembled(language)
    with torch.no_grad():  # a gate that distinguishes texts
        for parameter in model.model.alignment.gate.parameters():
            parameter.normal_(std=0.4)
    pixels = processor.image_processor([pictures[0]], return_tensors="pt")["pixel_values"]

    def weights(**inputs: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(pixel_values=pixels, **inputs).alignment_weights[0]

    first, later = asks(FIRST, 1), asks(FIRST, 1, ANSWER, SECOND)
    whole = [*later, {"role": "assistant", "content": [{"type": "text", "text": "two"}]}]
    input_ids, labels = tokenize(whole, processor)
    batch = {"input_ids": torch.tensor([input_ids]), "labels": torch.tensor([labels])}

    by_labels = weights(**batch)
    example = Example(input_ids, labels, pixels, None)
    other = Example(input_ids, [IGNORE_INDEX] * (len(labels) - 1) + labels[-1:], pixels, None)
    collated = Collator(processor.tokenizer.pad_token_id, packed=True)([(example,)])
    by_collator = weights(**{name: collated[name] for name in ("input_ids", "instruction_mask")})
    with_picture = [{**turn, "content": list(turn["content"])} for turn in later]
    with_picture[0]["content"] = [
        part | {"image": pictures[0]} if part["type"] == "image" else part for part in with_picture[0]["content"]
    ]
    chat = processor.apply_chat_template(
        with_picture, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    by_processor = weights(**{name: chat[name] for name in ("input_ids", "attention_mask", "instruction_mask")})
    engine = Engine(model, processor)
    of_first, of_later = engine.alignment_weights([Request(first, (pictures[0],)), Request(later, (pictures[0],))])

    torch.testing.assert_close(by_collator, by_labels, **TOLERANCE)
    torch.testing.assert_close(by_processor, by_labels, **TOLERANCE)
    torch.testing.assert_close(torch.tensor(of_later), by_labels, **TOLERANCE)
    torch.testing.assert_close(torch.tensor(of_first), by_labels, **TOLERANCE)
    # The gate does read: its weights differ when the instruction includes the answer and the second question.
    different = weights(input_ids=batch["input_ids"], labels=torch.tensor([other.labels]))
    assert (different - by_labels).abs().max() > 1e-4


def test_answers_of_a_batch_follow_their_own_instructions(
    assembled: Callable, asks: Callable, pictures: list[Image.Image]
) -> None:
    engine = Engine(*assembled("qwen2"))
    requests = [
        Request(asks(FIRST, 1, ANSWER, SECOND), (pictures[0],)),
        Request.ask("is it big ?", pictures[1]),
        Request.ask("describe a circle"),
    ]
    together = engine.alignment_weights(requests)
    for request, found in zip(requests, together, strict=True):
        assert engine.alignment_weights([request])[0] == (found and pytest.approx(found, abs=1e-5))


def test_a_greeting_is_read_together_with_the_first_question(
    assembled: Callable, asks: Callable, pictures: list[Image.Image]
) -> None:
    engine = Engine(*assembled("qwen2"))
    for parameter in engine.model.model.alignment.gate.parameters():
        parameter.requires_grad_(False).normal_(std=0.4)
    greeting = {"role": "assistant", "content": [{"type": "text", "text": "please describe"}]}
    turns = [[greeting, *asks(first, 1, *rest)] for first, *rest in ((FIRST,), (FIRST, ANSWER, SECOND), (SECOND,))]
    first, later, other = engine.alignment_weights([Request(one, (pictures[0],)) for one in turns])
    assert first == pytest.approx(later, abs=1e-6)
    assert first != pytest.approx(other, abs=1e-4)
    processor = engine.processor
    ids, _ = processor.encode(processor.expand(processor.apply_chat_template(turns[1], tokenize=False)))
    (mask,) = processor.instruction_mask([turns[1]], [[1] * len(ids)])
    read = processor.tokenizer.decode([token for token, one in zip(ids, mask, strict=True) if one])
    assert "please describe" in read and FIRST in read and ANSWER not in read
