"""Chat templates: plain strings and message parts, with images, as text."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from aligngpt.model.templates import (
    BARE,
    CHATML,
    NAMED_TEMPLATES,
    PLAIN,
    VICUNA,
    ChatTemplateError,
    breaks_answers,
    for_images,
    one_template,
    with_images,
)

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def render(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    rendered: Any = render_jinja_template(
        [messages], chat_template=template, bos_token="<s>", eos_token="</s>", **options
    )
    return rendered[0][0]


def say(role: str, text: str, images: int = 0, after: bool = False) -> dict[str, Any]:
    pictures = [{"type": "image"}] * images
    words = [{"type": "text", "text": text}]
    return {"role": role, "content": words + pictures if after else pictures + words}


def test_vicuna_is_that_of_the_original_code() -> None:
    talk = [say("user", "What?", 1), say("assistant", "Red."), say("user", "Why?"), say("assistant", "So.")]
    assert render(VICUNA, talk) == (
        f"<s>{SYSTEM} USER: <image>\nWhat? ASSISTANT: Red.</s>USER: Why? ASSISTANT: So.</s>"
    )
    assert render(VICUNA, talk[:1], add_generation_prompt=True) == (f"<s>{SYSTEM} USER: <image>\nWhat? ASSISTANT:")


def test_vicuna_takes_a_system_message() -> None:
    talk = [say("system", "Be brief."), say("user", "What?")]
    assert render(VICUNA, talk, add_generation_prompt=True) == "<s>Be brief. USER: What? ASSISTANT:"


def test_plain_is_image_caption_newline() -> None:
    assert render(PLAIN, [say("user", "", 1), say("assistant", "A dog.")]) == "<s><image>A dog.\n"
    assert render(PLAIN, [say("user", "", 1)], add_generation_prompt=True) == "<s><image>"


def test_plain_leaves_the_system_turn_out() -> None:
    caption = [say("user", "", 1), say("assistant", "A dog.")]
    assert render(PLAIN, [say("system", "Be brief."), *caption]) == render(PLAIN, caption)


def test_bare_is_image_question_answer_end() -> None:
    talk = [say("user", "What?", 1), say("assistant", "Red."), say("user", "Why?")]
    assert render(BARE, talk[:2]) == "<s><image>What? Red.</s>"
    assert render(BARE, talk, add_generation_prompt=True) == "<s><image>What? Red.</s>Why?"


def test_chatml_closes_every_message() -> None:
    talk = [say("user", "What?", 1), say("assistant", "Red.")]
    assert render(CHATML, talk) == (
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nRed.<|im_end|>\n"
    )
    assert render(CHATML, talk[:1], add_generation_prompt=True).endswith("<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("template", [PLAIN, VICUNA, CHATML, BARE])
def test_strings_and_parts_are_written_alike(template: str) -> None:
    parts = [say("user", "What?"), say("assistant", "Red.")]
    strings = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Red."}]
    assert render(template, parts) == render(template, strings)


@pytest.mark.parametrize("template", [PLAIN, VICUNA, CHATML])
def test_images_come_before_the_text_wherever_they_stood(template: str) -> None:
    before, after = [say("user", "What?", 2)], [say("user", "What?", 2, after=True)]
    assert render(template, before) == render(template, after)
    assert render(template, before).count("<image>") == 2


def test_a_prompt_is_the_beginning_of_its_conversation() -> None:
    talk = [say("user", "What?", 1), say("assistant", "Red.")]
    for template in (PLAIN, VICUNA, CHATML):
        assert render(template, talk).startswith(render(template, talk[:1], add_generation_prompt=True))


def test_a_text_only_template_learns_to_take_images() -> None:
    own = "{% for m in messages %}[{{ m['role'] }}|{{ m['content'] | trim }}]{% endfor %}{{ tool }}"
    talk = [say("system", "Be brief."), say("user", "What?", 2), {"role": "assistant", "content": "Red."}]
    assert render(with_images(own), talk, tool="!") == (
        "[system|Be brief.][user|<image>\n<image>\nWhat?][assistant|Red.]!"
    )


DATED = (
    "{% set today = '?' %}{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ today }}; {{ strftime_now( \"%Y\" ) }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
)


@pytest.mark.parametrize("wrapped", [with_images, lambda template: for_images(template, "a model")])
def test_a_conversation_has_the_same_prompt_on_any_day(wrapped: Callable[[str], str]) -> None:
    rendered = render(wrapped(DATED), [say("user", "What?")], strftime_now=lambda _: "today")
    assert rendered == "26 Jul 2024; 2024[What?]"


THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_templates_that_do_not_suit_training_are_told() -> None:
    assert breaks_answers(THINKS) == "it writes earlier turns otherwise when later ones follow"
    always = THINKS.replace(" and loop.last", "")
    assert breaks_answers(always) == "it writes '<think>\\n\\n</think>' before an answer, but not in the prompt for one"
    prompted = always.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
    )
    assert breaks_answers(prompted) is None
    # A template that cannot be rendered is for others to refuse.
    assert breaks_answers("{{ messages[7].role.name }}{% if %}") is None
    for template in NAMED_TEMPLATES.values():
        assert breaks_answers(template) == (NO_END if template == PLAIN else None)


NO_END = "it writes no mark after an answer, so a model would not learn to stop"


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_template_must_write_a_mark_after_each_answer(end: str) -> None:
    own = "{% for m in messages %}<|>{{ m['content'] }}END{% endfor %}{% if add_generation_prompt %}<|>{% endif %}"
    assert breaks_answers(own.replace("END", end)) == NO_END
    assert breaks_answers(own.replace("END", end + "###")) is None


def test_a_text_only_template_keeps_what_else_a_message_holds() -> None:
    own = "{% for m in messages %}{{ m['name'] }}: {{ m['content'] }}{% endfor %}"
    assert render(with_images(own), [say("user", "Hi.") | {"name": "Ann"}]) == "Ann: Hi."


def test_the_callers_messages_stay_as_they_are() -> None:
    talk = [say("user", "What?", 1)]
    render(with_images(CHATML), talk)
    assert talk == [say("user", "What?", 1)]


@pytest.mark.parametrize("template", [PLAIN, VICUNA, CHATML, BARE])
def test_a_template_that_takes_parts_stays_as_it_is(template: str) -> None:
    if template != PLAIN:
        assert for_images(template, "x") == template


def test_a_template_for_parts_alone_learns_to_take_strings() -> None:
    own = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] or '<image>' }}{% endfor %}|{% endfor %}"
    mixed = [say("user", "What?", 1), {"role": "assistant", "content": "Red."}]
    assert render(for_images(own, "x"), mixed) == "<image>What?|Red.|"


def test_a_template_that_says_nothing_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="of a folder omits the user's text or image"):
        for_images("{{ 'hello' }}", "a folder")


def test_one_of_several_templates() -> None:
    both = {"default": "a", "rag": "b"}
    assert one_template(both, "x") == one_template([{"name": n, "template": t} for n, t in both.items()], "x") == "a"
    assert one_template(None, "x") is one_template([], "x") is None
    with pytest.raises(ChatTemplateError, match="x has several chat templates, rag, and none is called `default`"):
        one_template({"rag": "b"}, "x")
    with pytest.raises(ChatTemplateError, match="neither a string nor named templates"):
        one_template(["a"], "x")
