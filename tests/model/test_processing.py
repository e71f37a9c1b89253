"""The processor: positions of `<align>` and image tokens, and pixels as the tower expects them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor
from transformers.models.auto import image_processing_auto
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from aligngpt.data.images.opening import open_image
from aligngpt.model.processing import AlignGPTProcessor
from aligngpt.model.templates import CHATML, NAMED_TEMPLATES, ChatTemplateError, with_images


def tokens(processor: AlignGPTProcessor, ids: Any) -> list[str]:
    """Token names, with consecutive `<image>` tokens collapsed into one."""
    names = processor.tokenizer.convert_ids_to_tokens(ids)
    return [name for i, name in enumerate(names) if name != "<image>" or names[i - 1] != "<image>"]


def chat(processor: AlignGPTProcessor, *conversations: list, **options: Any) -> Any:
    batched = list(conversations) if len(conversations) > 1 else conversations[0]
    defaults: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    options = defaults | options
    if len(conversations) > 1:
        options["processor_kwargs"] = {"padding": True}
    return processor.apply_chat_template(batched, **options)


def test_align_follows_the_bos_that_the_tokenizer_adds(assembled: Callable, pictures: list) -> None:
    _, processor = assembled("llama")
    ids = processor(images=pictures[0], text="<image> what colour")["input_ids"][0]
    assert tokens(processor, ids) == ["<s>", "<align>", "<image>", "what", "colour"]
    assert ids.count(processor.image_token_id) == 16


def test_align_comes_first_without_a_bos(assembled: Callable, pictures: list) -> None:
    _, processor = assembled("qwen2")
    ids = processor(images=pictures[0], text="<image>red")["input_ids"][0]
    assert tokens(processor, ids)[:2] == ["<align>", "<image>"]


@pytest.mark.parametrize("language", ["llama", "gemma"])
def test_align_follows_the_bos_that_the_template_writes(
    assembled: Callable, asks: Callable, pictures: list, language: str
) -> None:
    _, processor = assembled(language)  # whose tokenizer adds BOS as well
    ids = chat(processor, asks("what colour", pictures[:1]))["input_ids"][0]
    names = tokens(processor, ids)
    bos = processor.tokenizer.bos_token
    assert names[:2] == [bos, "<align>"]
    assert names.count(bos) == 1
    assert names.count("<align>") == 1


@pytest.mark.parametrize("language", ["llama", "gemma", "llama_tied", "qwen2"])
def test_a_rendered_conversation_gets_no_second_bos(
    assembled: Callable, asks: Callable, pictures: list, language: str
) -> None:
    """As programs do that render a conversation first and process the text later."""
    _, processor = assembled(language)
    expected = chat(processor, asks("what colour", pictures[:1]))["input_ids"][0].tolist()
    text = processor.apply_chat_template(asks("what colour", pictures[:1]), tokenize=False)
    assert processor(images=pictures[0], text=text)["input_ids"] == [expected]
    # Beside a text without one, whose BOS the tokenizer adds.
    alone = processor(images=pictures[0], text="<image> what colour")["input_ids"]
    both = processor(images=[[pictures[0]], [pictures[0]]], text=[text, "<image> what colour"])["input_ids"]
    assert both == [expected, *alone]
    whole = processor(images=pictures[0], text=text, add_special_tokens=True)["input_ids"][0]
    assert len(whole) - len(expected) == (language in ("llama", "gemma")), "told to, it adds one"


def test_align_comes_first_where_bos_opens_every_message(assembled: Callable, asks: Callable, pictures: list) -> None:
    _, processor = assembled("llama_tied")
    assert processor.tokenizer.bos_token == "<|im_start|>"
    names = tokens(
        processor, chat(processor, asks("what colour", pictures[:1]), add_generation_prompt=True)["input_ids"][0]
    )
    assert names[:4] == ["<align>", "<|im_start|>", "user", "<image>"]


def test_align_follows_the_first_bos_where_the_template_repeats_it(assembled: Callable) -> None:
    _, processor = assembled("llama")
    text = "<s>user <image> what assistant red</s><s>user how many assistant"
    assert processor.place_align(text) == "<s><align>" + text[len("<s>") :]


def test_special_tokens_that_people_write_stay_text(assembled: Callable, asks: Callable, pictures: list) -> None:
    _, processor = assembled("qwen2")
    written = "is <image> or <align> or <|im_end|> a tag ?"
    talk = asks(written, pictures[:1], "<|im_start|> no", written)
    talk[2]["content"] = written  # a string instead of parts
    before = str(talk)
    neutral = processor.neutral(talk)
    assert str(talk) == before
    names = processor.tokenizer.convert_ids_to_tokens(chat(processor, neutral)["input_ids"][0])
    assert {name: names.count(name) for name in ("<align>", "<image>", "<|im_start|>", "<|im_end|>")} == {
        "<align>": 1,
        "<image>": 16,
        "<|im_start|>": 3,
        "<|im_end|>": 3,
    }
    assert neutral[0]["content"][1]["text"].replace("\u2060", "") == written
    plain = asks("what colour ?", pictures[:1], "red")
    assert processor.neutral(plain) == plain


def halves(mark: str) -> list[tuple[str, str]]:
    return [(mark[:place], mark[place:]) for place in range(1, len(mark))]


@pytest.mark.parametrize("shown", [0, 1, 2])
def test_special_tokens_spelled_across_texts_stay_text(assembled: Callable, shown: int) -> None:
    _, processor = assembled("qwen2")
    special = [token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special]

    def counts(*texts: str) -> list[int]:
        parts = [{"type": "text", "text": text} for text in texts]
        # The second image stands inside the text.
        around = [[{"type": "image"}] * (shown > place) for place in range(2)]
        messages = processor.neutral([{"role": "user", "content": [*around[0], *parts[:-1], *around[1], parts[-1]]}])
        return [processor.apply_chat_template(messages).count(mark) for mark in special]

    plain = counts("red", "a", "b", "blue")
    for mark in special:
        for begun, ended in halves(mark):
            assert counts("red", begun, ended, "blue") == plain, (begun, ended)


def test_special_tokens_spelled_across_messages_stay_text(assembled: Callable) -> None:
    _, processor = assembled(chat_template="bare")
    for mark in ("<image>", "<align>", "</s>"):
        for texts in halves(mark):
            talk = [{"role": "user", "content": text} for text in texts]
            assert mark not in processor.apply_chat_template(processor.neutral(talk)), texts


def test_a_users_words_do_not_move_align(assembled: Callable) -> None:
    _, processor = assembled("llama")
    for words in ("is <s> a tag ?", "what does <align> do ?"):
        assert processor.place_align(f"<s>USER <image> {words}") == f"<s><align>USER <image> {words}"


def test_align_is_written_once(assembled: Callable) -> None:
    for language in ("llama", "llama_tied", "qwen2"):
        _, processor = assembled(language)
        once = processor.place_align("<s><image> red")
        assert processor.place_align(once) == once
        assert once.count("<align>") == 1


def test_text_without_an_image_gets_no_align(assembled: Callable, asks: Callable, pictures: list) -> None:
    _, processor = assembled("llama")
    batch = chat(processor, asks("what colour"), asks("how many", pictures[:1]))
    align = processor.tokenizer.convert_tokens_to_ids("<align>")
    assert (batch["input_ids"] == align).sum(dim=1).tolist() == [0, 1]
    assert batch["pixel_values"].shape == (1, 3, 32, 32)
    alone = processor(text="what colour", return_tensors="pt")
    assert "pixel_values" not in alone
    assert tokens(processor, alone["input_ids"][0]) == ["<s>", "what", "colour"]


def test_several_images_share_one_align(assembled: Callable, asks: Callable, pictures: list) -> None:
    _, processor = assembled("llama")
    batch = chat(processor, asks("what colour", pictures[:3]))
    names = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert (names.count("<align>"), names.count("<image>")) == (1, 48)
    assert batch["pixel_values"].shape == (3, 3, 32, 32)


def test_a_plain_llava_has_no_align(assembled: Callable, asks: Callable, pictures: list) -> None:
    model, processor = assembled("llama", alignment="none")
    assert processor.align_token is None
    assert "<align>" not in processor.tokenizer.get_vocab()
    assert model.config.align_token_index == -1
    assert processor.place_align("<s><image> red") == "<s><image> red"


@pytest.mark.parametrize(("text", "images"), [("<image> <image> red", 1), ("red", 1), ("<image> red", 0)])
def test_placeholders_and_images_must_be_as_many(assembled: Callable, pictures: list, text: str, images: int) -> None:
    _, processor = assembled("llama")
    with pytest.raises(ValueError, match=rf"{text.count('<image>')} <image> placeholders but {images} images"):
        processor(images=pictures[:images] or None, text=text)


@pytest.mark.parametrize("form", [Image.open, str, Path])
def test_images_are_read_as_they_are_seen(assembled: Callable, odd_pictures: list, form: Callable) -> None:
    _, processor = assembled("llama")
    expected = processor.image_processor([open_image(path) for path in odd_pictures], return_tensors="pt")
    options = {"text": ["<image> red"] * 3, "padding": True, "return_tensors": "pt"}
    nested = [[form(path)] for path in odd_pictures]
    for images in (nested, [image for (image,) in nested]):
        assert torch.equal(processor(images=images, **options)["pixel_values"], expected["pixel_values"])
    if form is not Path:
        shown = [{"role": "user", "content": [{"type": "image", "image": form(path)} for path in odd_pictures]}]
        assert torch.equal(chat(processor, shown)["pixel_values"], expected["pixel_values"])


def test_images_can_be_given_in_every_usual_form(assembled: Callable, pictures: list) -> None:
    _, processor = assembled("llama")
    texts = ["<image> red", "<image> <image> blue", "green"]
    options = {"text": texts, "padding": True, "return_tensors": "pt"}
    flat = processor(images=pictures[:3], **options)
    nested = processor(images=[pictures[:1], pictures[1:3], []], **options)
    arrays = processor(images=[np.asarray(picture) for picture in pictures[:3]], **options)
    for other in (nested, arrays):
        assert torch.equal(other["pixel_values"], flat["pixel_values"])
        assert torch.equal(other["input_ids"], flat["input_ids"])


@pytest.mark.parametrize("template", ["chatml", "vicuna"])
def test_no_end_mark_stands_between_a_prompt_and_its_answer(
    assembled: Callable, asks: Callable, pictures: list, template: str
) -> None:
    """Of a tokenizer that writes one after every text, as after `add_eos_token`."""
    _, processor = assembled("llama", chat_template=template)
    plain = chat(processor, asks("what colour ?", pictures[:1]), add_generation_prompt=True)["input_ids"][0]
    words = processor.tokenizer
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", words.bos_token_id), ("</s>", words.eos_token_id)]
    )
    assert words("what")["input_ids"][-1] == words.eos_token_id
    found = chat(processor, asks("what colour ?", pictures[:1]), add_generation_prompt=True)["input_ids"][0]
    assert torch.equal(found, plain) and found[0] == words.bos_token_id
    rendered = processor.apply_chat_template(asks("what colour ?", pictures[:1]), add_generation_prompt=True)
    assert processor.encode(processor.expand(rendered))[0] == plain.tolist()
    assert processor.encode("what")[0] == words("what")["input_ids"][:-1]
    batch = processor(images=pictures[:1], text=["<image> what", "what colour"], padding=True)
    assert all(ids[-1] != words.eos_token_id and words.bos_token_id in ids for ids in batch["input_ids"])


@pytest.mark.parametrize("before", [["system", "assistant"], ["assistant", "assistant"], ["assistant"], ["system"], []])
def test_the_gate_reads_up_to_the_first_response_to_a_question(
    assembled: Callable, asks: Callable, pictures: list, before: list[str]
) -> None:
    _, processor = assembled("llama", chat_template="chatml")
    opening = [{"role": role, "content": [{"type": "text", "text": "a circle"}]} for role in before]
    talk = [*opening, *asks("what colour is it ?", pictures[:1], "red")]
    batch = chat(processor, talk)
    prompt = chat(processor, talk[:-1], add_generation_prompt=True)["input_ids"][0]
    assert torch.equal(batch["input_ids"][0][batch["instruction_mask"][0].bool()], prompt)


LAST = with_images(
    "{% set told = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages if m['role'] != 'system' %}{% if m['role'] == 'user' %}"
    "[INST]{{ told if loop.last }} {{ m['content'] }}[/INST]{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
"""Writes the system turn into the last question, as Mistral's."""


def test_a_template_that_moves_what_the_gate_has_read_is_an_error(
    assembled: Callable, asks: Callable, pictures: list
) -> None:
    _, processor = assembled("llama")
    talk = asks("what colour ?", pictures[:1], "red", "and how many ?")
    chat(processor, talk, chat_template=LAST, add_generation_prompt=True)
    system = {"role": "system", "content": "a big circle"}
    chat(processor, [system, *talk[:1]], chat_template=LAST, add_generation_prompt=True)
    with pytest.raises(ChatTemplateError, match="writes the first question otherwise once there is an answer"):
        chat(processor, [system, *talk], chat_template=LAST, add_generation_prompt=True)


def test_the_gate_reads_no_answer_where_a_prompt_opens_with_a_thought(
    assembled: Callable, asks: Callable, pictures: list
) -> None:
    _, processor = assembled("llama")
    thinks = CHATML.replace("assistant\\n' }}{%- endif", "assistant\\nthree four' }}{%- endif")
    talk = asks("what colour ?", pictures[:1], "red yellow", "and how many ?")
    batch = chat(processor, talk, chat_template=thinks, add_generation_prompt=True)
    read = tokens(processor, batch["input_ids"][0][batch["instruction_mask"][0].bool()])
    assert thinks != CHATML and read[-1] == "assistant" and "red" not in read


def test_expanded_text_is_what_is_tokenized(assembled: Callable, pictures: list) -> None:
    _, processor = assembled("llama")
    text = "USER : <image> what colour ?"
    expected = processor(images=pictures[0], text=text)["input_ids"][0]
    assert processor.tokenizer(processor.expand(text))["input_ids"] == expected


@pytest.mark.parametrize("language", ["llama", "qwen2", "gemma", "llama_tied"])
@pytest.mark.parametrize("images", [0, 2])
def test_instruction_mask_ends_where_the_first_response_begins(
    assembled: Callable, asks: Callable, pictures: list, language: str, images: int
) -> None:
    _, processor = assembled(language)
    short = asks("what colour is it ?", pictures[:images], "red")
    talk = asks("how many circle are there ?", pictures[:images], "two", "yes ?", "no it is big")
    batch = chat(processor, short, talk)
    for row, messages in enumerate([short, talk]):
        prompt = chat(processor, messages[:1], add_generation_prompt=True)["input_ids"][0]
        chosen = batch["input_ids"][row][(batch["instruction_mask"] & batch["attention_mask"])[row].bool()]
        assert torch.equal(chosen, prompt)


@pytest.mark.parametrize("form", [None, "np", "pt"])
def test_instruction_mask_comes_in_the_form_of_the_rest(
    assembled: Callable, asks: Callable, pictures: list, form: str | None
) -> None:
    _, processor = assembled("llama")
    talk = asks("what colour ?", pictures[:1], "red")
    expected = chat(processor, talk)["instruction_mask"]
    found = chat(processor, talk, return_tensors=form)
    assert type(found["instruction_mask"]) is type(found["attention_mask"])
    assert np.array_equal(np.asarray(found["instruction_mask"]), expected.numpy())
    assert 0 < expected.sum() < expected.numel()


def test_the_instruction_mask_knows_what_the_template_was_given(
    assembled: Callable, asks: Callable, pictures: list
) -> None:
    _, processor = assembled("llama", chat_template="chatml")
    template = "{% if tools %}{{ tools | length }} circle {% endif %}{% if told %}{{ told }} {% endif %}" + CHATML
    talk = asks("what colour ?", pictures[:1], "red")
    for given in ({"told": "how many big red shape are there"}, {"tools": [{"type": "function"}]}, {}):
        batch = chat(processor, talk, chat_template=template, **given)
        read = batch["input_ids"][0][batch["instruction_mask"][0].bool()]
        prompt = chat(processor, talk[:1], chat_template=template, add_generation_prompt=True, **given)
        assert torch.equal(read, prompt["input_ids"][0])
    with pytest.raises(ValueError, match=r"give processor\.neutral"):
        chat(processor, talk, sanitize_control_tokens=True)


def test_a_prompt_needs_no_instruction_mask(assembled: Callable, asks: Callable, pictures: list) -> None:
    _, processor = assembled("llama")
    batch = chat(processor, asks("what colour ?", pictures[:1]), add_generation_prompt=True)
    assert "instruction_mask" not in batch


def test_gate_reads_the_same_in_a_conversation_as_in_its_first_turn(
    assembled: Callable, asks: Callable, pictures: list
) -> None:
    model, processor = assembled("llama")
    talk = asks("what colour ?", pictures[:1], "red", "and how many ?")
    first = model(**chat(processor, talk[:1], add_generation_prompt=True)).alignment_weights
    later = model(**chat(processor, talk, add_generation_prompt=True)).alignment_weights
    torch.testing.assert_close(later, first)


def test_pictures_are_padded_to_a_square_with_the_mean_colour(assembled: Callable) -> None:
    _, processor = assembled("llama")
    settings = processor.image_processor
    mean, std = np.array(settings.image_mean), np.array(settings.image_std)
    white = Image.new("RGB", (32, 16), "white")
    pixels = processor(images=white, text="<image>", return_tensors="pt")["pixel_values"][0].numpy()
    background = (np.floor(mean * 255) / 255 - mean) / std
    expected = np.empty((3, 32, 32))
    expected[:] = background[:, None, None]
    expected[:, 8:24] = ((1 - mean) / std)[:, None, None]
    np.testing.assert_allclose(pixels, expected, atol=1e-5)


def test_unpadded_pictures_lose_their_margins(assembled: Callable) -> None:
    _, processor = assembled("llama", pad_images=False)
    picture = np.zeros((32, 64, 3), dtype=np.uint8)
    picture[:, :16] = picture[:, 48:] = 255
    pixels = processor(images=Image.fromarray(picture), text="<image>", return_tensors="pt")["pixel_values"][0]
    settings = processor.image_processor
    black = -torch.tensor(settings.image_mean) / torch.tensor(settings.image_std)
    torch.testing.assert_close(pixels, black[:, None, None].expand(3, 32, 32), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("language", ["llama", "gemma", "qwen2"])
@pytest.mark.parametrize("alignment", ["adaptive", "none"])
def test_saved_and_loaded_it_does_the_same(
    assembled: Callable, asks: Callable, pictures: list, tmp_path: Path, language: str, alignment: str
) -> None:
    _, processor = assembled(language, alignment=alignment)
    processor.save_pretrained(tmp_path)
    loaded = AlignGPTProcessor.from_pretrained(tmp_path)
    assert loaded.image_seq_length == processor.image_seq_length == 16
    assert loaded.align_token == processor.align_token == ("<align>" if alignment == "adaptive" else None)
    assert loaded.chat_template == processor.chat_template
    assert loaded.num_additional_image_tokens == 1
    assert loaded.tokenizer.padding_side == "left"
    assert loaded.tokenizer.pad_token == processor.tokenizer.pad_token is not None
    talks = [asks("what colour ?", pictures[:2], "red"), asks("how many are there ?")]
    before, after = chat(processor, *talks), chat(loaded, *talks)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # AutoProcessor goes by the configuration or the processor's own class name.
    assert type(AutoProcessor.from_pretrained(tmp_path)) is AlignGPTProcessor


@pytest.mark.parametrize("loader", [AlignGPTProcessor, AutoProcessor])
def test_pixels_do_not_depend_on_torchvision(
    assembled: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: Any
) -> None:
    assembled("llama")[1].save_pretrained(tmp_path)
    asked = []

    def load(name: str, backend: str, *args: Any, **options: Any) -> Any:
        asked.append(backend)
        return LlavaImageProcessorPil

    monkeypatch.setattr(image_processing_auto, "_load_backend_class", load)
    monkeypatch.setattr(image_processing_auto, "is_torchvision_available", lambda: True)
    loaded = loader.from_pretrained(tmp_path)
    assert asked == ["pil"]
    assert loaded.tokenizer.backend == "tokenizers"


@pytest.mark.parametrize("template", [None, *NAMED_TEMPLATES])
def test_only_a_turn_without_an_end_token_ends_with_a_text(assembled: Callable, template: str | None) -> None:
    _, processor = assembled("qwen2", chat_template=template)
    assert processor.turn_end() == ("###" if template == "llava_v0" else "")
