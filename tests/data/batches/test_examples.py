"""Token ids of conversations with images in front of, inside and after their texts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AddedToken

from aligngpt.data.batches.collate import Collator
from aligngpt.data.batches.dataset import ConversationDataset
from aligngpt.data.batches.examples import ExampleError, images_in, response_of, tokenize
from aligngpt.data.batches.rows import rows_of
from aligngpt.data.records.sample import parse_record
from aligngpt.inference.engine import Engine, Request
from aligngpt.model.templates import NAMED_TEMPLATES, PLAIN, with_images

RECORDED = Path(__file__).with_name("token_ids.json")
"""Token ids by chat template, as they were when images could only stand before the first question."""

PART = {"type": "image", "path": "a.png"}
WORDS = {"type": "text", "text": "is it red ?"}
IN_FRONT: tuple[dict[str, Any], ...] = (
    {"image": "a.png", "caption": "a red circle"},
    {"image": "a.png", "question": "is it red ?", "answer": "yes"},
    {"question": "is it red ?", "answer": "yes"},
    {"image": ["a.png", "b.png"], "conversations": [["human", "<image>\n<image>\nis it red ?"], ["gpt", "yes"]]},
    {"image": "a.png", "conversations": [["human", "is it red ?\n<image>"], ["gpt", "yes"]]},
    {"messages": [["user", [WORDS, PART]], ["assistant", "yes"], ["user", "how many ?"], ["assistant", "two"]]},
    {"image": "a.png", "conversations": [["system", "a circle"], ["human", "<image>is it ?"], ["gpt", "no"]]},
)


def spelled_out(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its turns, here pairs, as objects."""
    turns = {field: record[field] for field in ("conversations", "messages") if field in record}
    return record | {field: [{"role": role, "content": text} for role, text in turns[field]] for field in turns}


def token_ids(record: dict[str, Any], processor: Any, template: str) -> list[int]:
    messages = parse_record(spelled_out(record)).messages()
    input_ids, labels = tokenize(messages, processor, chat_template=NAMED_TEMPLATES.get(template))
    assert any(label != -100 for label in labels)
    return input_ids


@pytest.mark.parametrize("template", ["own", *NAMED_TEMPLATES])
def test_images_before_the_first_question_have_the_token_ids_they_always_had(
    assembled: Callable, template: str
) -> None:
    _, processor = assembled("qwen2")
    found = [token_ids(record, processor, template) for record in IN_FRONT]
    assert found == json.loads(RECORDED.read_text())[template]


INSIDE = {"images": ["a.png", "b.png"], "conversations": [["human", "is <image> or <image> red ?"], ["gpt", "yes"]]}
LATER = {
    "images": ["a.png", "b.png"],
    "conversations": [["human", "<image>is it ?"], ["gpt", "no"], ["human", "<image>is it red ?"], ["gpt", "yes"]],
}


@pytest.mark.parametrize("template", ["own", *NAMED_TEMPLATES])
@pytest.mark.parametrize("record", [INSIDE, LATER])
def test_images_that_stand_apart_are_apart_in_the_token_ids(
    assembled: Callable, template: str, record: dict[str, Any]
) -> None:
    _, processor = assembled("qwen2")
    input_ids = token_ids(record, processor, template)
    runs = "".join("I" if one == processor.image_token_id else "." for one in input_ids)
    assert [len(run) for run in runs.split(".") if run] == [processor.image_seq_length] * 2
    assert images_in(input_ids, processor) == 2


LATE = {
    "image": "a.png",
    "conversations": [["human", "what is it ?"], ["gpt", "a circle"], ["human", "<image>is it red ?"], ["gpt", "yes"]],
}


@pytest.mark.parametrize("template", [name for name in NAMED_TEMPLATES if name != "plain"])
@pytest.mark.parametrize("language", ["qwen2", "llama", "gemma"])
def test_an_image_may_come_after_the_first_answer(assembled: Callable, template: str, language: str) -> None:
    """Training and the processor agree on what the gate reads: the text before the first answer."""
    if language == "qwen2" and template == "bare":
        pytest.skip("this template needs a BOS token")
    _, processor = assembled(language, chat_template=template)
    messages = parse_record(spelled_out(LATE)).messages()
    input_ids, labels = tokenize(messages, processor)
    counted = processor.tokenizer.decode([label for label in labels if label != -100], skip_special_tokens=True)
    assert "".join(counted.replace("#", "").split()) == "acircleyes"
    (mask,) = processor.instruction_mask([messages], [[1] * len(input_ids)])
    assert mask.index(0) == next(place for place, label in enumerate(labels) if label != -100)
    silent = [message | {"loss": index != 1} for index, message in enumerate(messages)]
    assert response_of(silent, processor, chat_template=None, max_length=1000) == mask.index(0)


@pytest.mark.parametrize("template", [name for name in NAMED_TEMPLATES if name != "plain"])
def test_images_inside_a_text_stay_there_in_every_template(assembled: Callable, template: str) -> None:
    _, processor = assembled("llama", chat_template=template)
    (message, *_) = parse_record(spelled_out(INSIDE)).messages()
    for parts in (message["content"], [PART, *message["content"]], [*message["content"], PART, WORDS]):
        said = [{"role": "user", "content": parts}]
        text = processor.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        assert text == processor.apply_chat_template(
            processor.neutral(said), tokenize=False, add_generation_prompt=True
        )
        assert "is <image> or <image> red ?" in text


TWO_ROLES = with_images(
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'].split('</think>')[-1] + '<|end|>\n' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("system", "answer", "role"), [("a circle", "yes", "system"), ("", "<think>it is big</think>yes", "assistant")]
)
def test_what_a_template_leaves_out_makes_a_reject(assembled: Callable, system: str, answer: str, role: str) -> None:
    _, processor = assembled("qwen2")
    messages = parse_record({"system": system, "question": "is it  red ?", "answer": answer}).messages()
    with pytest.raises(ExampleError, match=f"leaves out text of the {role}; change the record") as raised:
        tokenize(messages, processor, chat_template=TWO_ROLES)
    assert raised.value.reason == "template"


def test_a_template_may_change_white_space_and_plain_leaves_out_questions(assembled: Callable) -> None:
    _, processor = assembled("qwen2")
    record = {"system": "a circle", "image": "a.png", "question": "is \n it  red ?", "answer": "yes  no"}
    squeezes = NAMED_TEMPLATES["chatml"].replace("part['text'] }}", "part['text'].split() | join(' ') }}")
    for template in (squeezes, PLAIN):
        tokenize(parse_record(record).messages(), processor, chat_template=template)
    assert squeezes != NAMED_TEMPLATES["chatml"]


@pytest.mark.parametrize(("mark", "counted"), [("<|end|>", "yes<|end|>"), ("###", "yes###"), ("", "yes\n")])
def test_a_line_break_after_an_end_mark_does_not_count(assembled: Callable, mark: str, counted: str) -> None:
    """Whether the mark is a special token with a name, one without, or none; without a mark it is the end."""
    _, processor = assembled("qwen2")
    processor.tokenizer.add_tokens([AddedToken("<|end|>", special=True)])
    messages = parse_record({"question": "is it red ?", "answer": "yes"}).messages()
    _, labels = tokenize(messages, processor, chat_template=TWO_ROLES.replace("<|end|>", mark))
    assert processor.tokenizer.decode([label for label in labels if label != -100]) == counted


def test_a_message_with_images_inside_its_text_is_rendered_in_order(assembled: Callable) -> None:
    _, processor = assembled("qwen2")
    messages = parse_record(spelled_out(INSIDE)).messages()[:1]
    messages[0]["content"].append({"type": "text", "text": " not <image>"})
    text = processor.apply_chat_template(processor.neutral(messages), tokenize=False)
    assert "is <image> or <image> red ? not <\u2060image>" in text


def test_a_long_conversation_loses_its_last_turns_with_their_images(assembled: Callable, tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.png")
    _, processor = assembled("qwen2")
    samples = [parse_record(spelled_out(LATER))]
    (whole,) = ConversationDataset(samples, processor, tmp_path)[0]
    (cut,) = ConversationDataset(samples, processor, tmp_path, max_length=len(whole.input_ids) - 1)[0]
    assert whole.pixel_values is not None and cut.pixel_values is not None
    assert (len(whole.pixel_values), len(cut.pixel_values), images_in(cut.input_ids, processor)) == (2, 1, 1)


def test_conversations_with_an_image_in_a_later_turn_share_no_row() -> None:
    samples = [parse_record(spelled_out(record)) for record in (LATER, LATER, INSIDE)]
    alike = [parse_record({"image": "a.png", "caption": "a"}) for _ in range(2)]
    assert list(rows_of([*samples, *alike], 4)) == [(0,), (1,), (2,), (3, 4)]


def test_an_interleaved_sample_is_computed_alike_alone_in_a_batch_and_in_a_question(
    assembled: Callable, tmp_path: Path
) -> None:
    model, processor = assembled("qwen2")
    model.eval()
    for place, name in enumerate("ab"):
        Image.new("RGB", (40, 30), (100 * place, 10, 200)).save(tmp_path / f"{name}.png")
    pictures = tuple(Image.open(tmp_path / f"{name}.png") for name in "ab")
    single = {"image": "b.png", "question": "is it ?", "answer": "yes"}
    samples = [parse_record(spelled_out(record)) for record in (INSIDE, LATER, single)]
    dataset = ConversationDataset(samples, processor, tmp_path, questions_per_prefix=4)
    rows = [dataset[place] for place in range(3)]
    exchanged = ConversationDataset([samples[0].showing(("b.png", "a.png"))], processor, tmp_path)[0]
    collate = Collator(processor.tokenizer.pad_token_id)
    with torch.no_grad():
        alone = [model(**collate([row])).logits[0] for row in rows]
        together = model(**collate(rows)).logits
        other = model(**collate([exchanged])).logits[0]
    for one, both in zip(alone, together, strict=True):
        torch.testing.assert_close(both[: len(one)], one, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(other, alone[0], atol=1e-4)
    engine = Engine(model, processor)
    for sample, (example,) in zip(samples[:2], rows[:2], strict=True):
        asked = engine.prompts.write(Request(sample.messages()[:-1], pictures), 1).ids
        assert example.input_ids[: len(asked)] == asked
