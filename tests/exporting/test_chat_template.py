"""The exported chat template writes what our processor inserts."""

from collections.abc import Callable

import pytest

from aligngpt.exporting.chat_template import PROBES, self_contained
from aligngpt.exporting.loading import ExportError
from aligngpt.model.processing import AlignGPTProcessor

IN_TEXT = [{"role": "user", "content": "is <image> red ?"}]


@pytest.mark.parametrize("language", ["llama", "gemma", "qwen2", "llama_tied"])
@pytest.mark.parametrize("template", [None, "chatml", "vicuna", "bare"])
def test_it_renders_the_same_tokens_without_adding_any(
    assembled: Callable, language: str, template: str | None
) -> None:
    if language == "qwen2" and template == "bare":
        pytest.skip("this template needs a BOS token")
    processor: AlignGPTProcessor = assembled(language, chat_template=template)[1]
    extended = self_contained(processor)
    for messages in (*PROBES, IN_TEXT):
        asked = messages if isinstance(messages[0]["content"], str) else processor.neutral(messages)
        text = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        expected, _ = processor.encode(processor.place_align(text))
        theirs = processor.apply_chat_template(messages, extended, tokenize=False, add_generation_prompt=True)
        assert processor.tokenizer(theirs, add_special_tokens=False)["input_ids"] == expected
        assert theirs.count("<align>") == ("<image>" in theirs)


IN_FRONT = (
    "{%- for m in messages -%}{%- for part in m['content'] if part['type'] == 'image' -%}<image>{%- endfor -%}"
    "{%- for part in m['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}{%- endfor -%}"
)


def test_images_inside_a_text_stay_there_whatever_the_template_does(assembled: Callable) -> None:
    processor: AlignGPTProcessor = assembled("llama")[1]
    processor.chat_template = IN_FRONT
    said = PROBES[-1]
    assert processor.apply_chat_template(said, tokenize=False).startswith("<image><image>what")
    text = processor.apply_chat_template(said, self_contained(processor), tokenize=False)
    assert text == "<s><align>what is it ?<image>what is it ?<image>what is it ?"


def test_white_space_around_the_template_is_kept(assembled: Callable) -> None:
    processor: AlignGPTProcessor = assembled("llama")[1]
    processor.chat_template = "\n\n{% for message in messages %}{{ '<image>' }}{% endfor %}\n  \n"
    text = processor.apply_chat_template(PROBES[1], tokenize=False)
    assert text.startswith("\n\n") and text.endswith("  ")
    extended = self_contained(processor)
    assert processor.apply_chat_template(PROBES[1], extended, tokenize=False) == "<s><align>" + text


def test_a_template_that_cannot_be_extended_is_refused(assembled: Callable) -> None:
    processor: AlignGPTProcessor = assembled("llama")[1]
    processor.chat_template = "{{ range(100000) | random }}"
    with pytest.raises(ExportError, match=r"train the model with another template \(model\.chat_template\)"):
        self_contained(processor)
    processor.chat_template = None
    with pytest.raises(ExportError, match="no chat template"):
        self_contained(processor)
