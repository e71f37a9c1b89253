"""The chat template in a GGUF file makes the processor's tokens of what llama.cpp hands it."""

from collections.abc import Callable

import pytest

from aligngpt.exporting.chat_template import PROBES
from aligngpt.exporting.gguf.chat_template import MARKER, as_llama_cpp_gives, for_llama_cpp, token_ids
from aligngpt.exporting.loading import ExportError
from aligngpt.model.processing import AlignGPTProcessor

TEXT, IMAGE = {"type": "text", "text": "is it red ?"}, {"type": "image"}
LAYOUTS = {
    "images first": [IMAGE, IMAGE, TEXT],
    "image last": [TEXT, IMAGE],
    "between texts": [TEXT, IMAGE, TEXT],
    "no image": [TEXT],
    "special tokens": [IMAGE, {"type": "text", "text": "<align><image><|im_end|> <s>"}],
    "half a marker": [IMAGE, {"type": "text", "text": "what is <__media ?"}],
}


@pytest.mark.parametrize("language", ["llama", "gemma", "qwen2", "llama_tied"])
@pytest.mark.parametrize("template", [None, "chatml", "vicuna", "bare"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_renders_the_same_tokens(assembled: Callable, language: str, template: str | None, layout: str) -> None:
    if language == "qwen2" and template == "bare":
        pytest.skip("this template needs a BOS token")
    processor: AlignGPTProcessor = assembled(language, chat_template=template)[1]
    extended = for_llama_cpp(processor)
    messages = [*PROBES[2], {"role": "assistant", "content": [TEXT]}, {"role": "user", "content": LAYOUTS[layout]}]
    text = processor.apply_chat_template(processor.neutral(messages), tokenize=False, add_generation_prompt=True)
    expected, _ = processor.encode(processor.expand(text))
    given = as_llama_cpp_gives(messages)
    assert all(isinstance(message["content"], str) for message in given)
    theirs = processor.apply_chat_template(given, extended, tokenize=False, add_generation_prompt=True)
    assert token_ids(processor, theirs) == expected
    assert theirs.count("<align>") == 1 and theirs.count(MARKER) == sum(
        part["type"] == "image" for message in messages for part in message["content"]
    )


def test_the_line_break_after_an_image_is_there(assembled: Callable) -> None:
    processor: AlignGPTProcessor = assembled("qwen2", chat_template="chatml")[1]
    given = as_llama_cpp_gives([{"role": "user", "content": [IMAGE, TEXT]}])
    assert given[0]["content"] == MARKER + "is it red ?"
    theirs = processor.apply_chat_template(given, for_llama_cpp(processor), tokenize=False)
    assert MARKER + "\nis it red ?" in theirs and theirs.startswith("<align>")


def test_any_marker_is_recognised(assembled: Callable) -> None:
    processor: AlignGPTProcessor = assembled("qwen2", chat_template="chatml")[1]
    messages = [{"role": "user", "content": "<__media__>is it red ?"}]
    assert "<__media__>\nis" in processor.apply_chat_template(messages, for_llama_cpp(processor), tokenize=False)


def test_a_special_token_may_spell_a_name_of_the_template(assembled: Callable) -> None:
    processor: AlignGPTProcessor = assembled("qwen2", chat_template="chatml")[1]
    marks = ["[IMG_END]", "<|START_OF_TURN|>", "<|IMAGE|>", "[SPECIAL]"]
    processor.tokenizer.add_special_tokens({"additional_special_tokens": marks})
    given = [{"role": "user", "content": "is it " + " ".join(marks)}]
    theirs = processor.apply_chat_template(given, for_llama_cpp(processor), tokenize=False)
    assert theirs == processor.apply_chat_template(processor.neutral(given), tokenize=False)
    assert not any(mark in theirs for mark in marks)


def test_a_template_that_cannot_be_extended_is_refused(assembled: Callable) -> None:
    processor: AlignGPTProcessor = assembled("qwen2")[1]
    processor.chat_template = "{{ range(100000) | random }}"
    with pytest.raises(ExportError, match="--chat-template"):
        for_llama_cpp(processor)
    processor.chat_template = None
    with pytest.raises(ExportError, match="no chat template"):
        for_llama_cpp(processor)
