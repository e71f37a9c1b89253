"""Chat templates: how a conversation is rendered as text.

A language model's own template comes with its tokenizer and expects each message to be a string; `with_images` makes
it accept transformers' message parts (`[{"type": "image"}, {"type": "text", "text": …}]`) as well. Images are placed
before the text of their message, as in LLaVA's preprocessing, unless they stand inside it. `for_images` does so only
if a template does not accept parts by itself, as a multimodal model's does.
"""

import json
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from aligngpt.errors import AlignGPTError

# `image_text` renders one message: an `<image>` followed by `separator` for each of its images, then its text; images
# inside the text stay there, as `AlignGPTProcessor.neutral` leaves them.
_FLATTEN = """\
{%- macro image_text(message, separator) -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- set had = namespace(image=false, text=false, image_after=false, text_after=false) -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{%- set had.image_after = had.image_after or had.text -%}{%- set had.image = true -%}
{%- elif part['type'] == 'text' and part['text'] | trim -%}
{%- set had.text_after = had.text_after or had.image -%}{%- set had.text = true -%}
{%- endif -%}
{%- endfor -%}
{%- if had.image_after and had.text_after -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ '<image>' }}{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>' + separator }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- endif -%}
{%- endmacro -%}
"""

PLAIN = (
    _FLATTEN
    + """\
{{- bos_token -}}
{%- for message in messages if message['role'] != 'system' -%}
{%- set images = message['content'] | selectattr('type', 'equalto', 'image') | list
      if message['content'] is not string else [] -%}
{%- if images -%}{{ '<image>' * (images | length) }}{%- else -%}{{ image_text(message, '') }}{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{ '\\n' }}{%- endif -%}
{%- endfor -%}
"""
)
"""LLaVA's `plain` conversation, for pre-training on captions: BOS if there is one, image, caption, newline.

The question that accompanies an image ("describe the picture") and the system turn are left out, as in LLaVA.
"""

VICUNA = (
    _FLATTEN
    + """\
{%- if messages[0]['role'] == 'system' -%}
{{ (bos_token or '') + image_text(messages[0], '') + ' ' }}{%- set turns = messages[1:] -%}
{%- else -%}
{{ (bos_token or '') + 'A chat between a curious user and an artificial intelligence assistant. ' -}}
{{ 'The assistant gives helpful, detailed, and polite answers to the user\\'s questions. ' }}
{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}{{ 'USER: ' + image_text(message, '\\n') + ' ' }}
{%- else -%}{{ 'ASSISTANT: ' + image_text(message, '') + eos_token }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""
)
"""Vicuna v1.1's conversation (`vicuna_v1` of the original code)."""

LLAVA_V1 = VICUNA.replace("a curious user", "a curious human").replace("the user\\'s", "the human\\'s")
"""As Vicuna's, between a human and an assistant (`llava_v1`)."""

LLAVA_V0 = (
    _FLATTEN
    + """\
{%- if messages[0]['role'] == 'system' -%}
{{ (bos_token or '') + image_text(messages[0], '') + '###' }}{%- set turns = messages[1:] -%}
{%- else -%}
{{ (bos_token or '') + 'A chat between a curious human and an artificial intelligence assistant. ' -}}
{{ 'The assistant gives helpful, detailed, and polite answers to the human\\'s questions.###' }}
{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
{{ ('Human: ' if message['role'] == 'user' else 'Assistant: ') + image_text(message, '\\n') + '###' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""
)
"""The first LLaVA's conversation (`v0`, `llava_v0`).

Its turns end with `###`, which is not a token. The engine ends an answer there (`AlignGPTProcessor.turn_end`); for
`generate`, pass it as `stop_strings`.
"""

LLAVA_LLAMA_2 = (
    _FLATTEN
    + """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system = image_text(messages[0], '') -%}{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = 'You are a helpful language and vision assistant. You are able to understand the visual content that '
      + 'the user provides, and assist the user with a variety of tasks using natural language.' -%}
{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{{ (bos_token or '') + '[INST] ' -}}
{%- if loop.first -%}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{%- endif -%}
{{ image_text(message, '\\n') + ' [/INST]' }}
{%- else -%}{{ ' ' + image_text(message, '') + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}
"""
)
"""Llama 2's conversation with LLaVA's system prompt (`llava_llama_2`)."""

CHATML = (
    _FLATTEN
    + """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + image_text(message, '\\n') + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
)
"""ChatML without a system prompt of its own (Qwen, SmolLM and many more)."""

BARE = (
    _FLATTEN
    + """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}{{ ' ' + image_text(message, '') + eos_token }}
{%- else -%}{{ image_text(message, '') }}
{%- endif -%}
{%- endfor -%}
"""
)
"""BOS, image, question, answer and nothing else: the fewest tokens, for small models tuned to answer briefly."""

_AS_PARTS = """\
{%- set parted = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- if content is string -%}{%- set content = [{'type': 'text', 'text': content}] -%}{%- endif -%}
{%- set parted.messages = parted.messages + [dict(message, content=content)] -%}
{%- endfor -%}
{%- set messages = parted.messages -%}
"""
DATE = date(2024, 7, 26)
"""The day that templates write in place of today: the one that Llama's write where they cannot know."""

_TODAY = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<format>[^'"\\]*)(?P=quote)\s*\)""")
_PROBE = "what is in it"
_CHOOSE = "choose another template, by name or as a Jinja file"

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|return|>")
"""Marks that chat templates write after a turn; a model stops at those its template uses."""

NAMED_TEMPLATES = {
    "plain": PLAIN,
    "vicuna": VICUNA,
    "llava_v1": LLAVA_V1,
    "llava_v0": LLAVA_V0,
    "llava_llama_2": LLAVA_LLAMA_2,
    "chatml": CHATML,
    "bare": BARE,
}


class ChatTemplateError(AlignGPTError):
    """A chat template cannot be used, or it is unclear which of several is meant."""


def stored_template(folder: Path) -> tuple[str, str] | None:
    """The chat template of a model folder's processor and the name of its file; None if it has none.

    A tokenizer's own, in `tokenizer_config.json`, is not searched: the tokenizer reads it.

    Raises:
        ChatTemplateError: a file cannot be read, or has several templates but no `default`.
    """
    for name in ("processor_config.json", "preprocessor_config.json", "chat_template.jinja", "chat_template.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
            found = json.loads(text).get("chat_template") if file.suffix == ".json" else text
        except (OSError, ValueError, AttributeError) as error:
            raise ChatTemplateError(f"{file} cannot be read: {error}; download it again") from error
        if found and (template := one_template(found, str(file))):
            return template, name
    return None


def one_template(stored: Any, where: str) -> str | None:
    """The chat template to use from a stored value: the only one, or `default` among several.

    Args:
        stored: a Jinja source, a mapping of names to sources, a list of `{"name": …, "template": …}`, or None.
        where: where it is stored, for the message.

    Raises:
        ChatTemplateError: there are several and none is called `default`, or the value has another form.
    """
    if not stored:
        return None
    if isinstance(stored, str):
        return stored
    try:
        by_name = dict(stored) if isinstance(stored, Mapping) else {one["name"]: one["template"] for one in stored}
    except (TypeError, KeyError) as error:
        raise ChatTemplateError(f"{where}: its chat template is neither a string nor named templates") from error
    if not isinstance(by_name.get("default"), str):
        raise ChatTemplateError(
            f"{where} has several chat templates, {', '.join(map(str, by_name))}, and none is called `default`; set "
            f"chat_template to one of {', '.join(NAMED_TEMPLATES)} or to a Jinja file"
        )
    return str(by_name["default"])


def for_images(template: str, where: str) -> str:
    """A template that accepts both message parts with images and plain strings: the given one, wrapped if necessary.

    Args:
        template: the Jinja source from a tokenizer or a processor.
        where: where it comes from, for the message.

    Raises:
        ChatTemplateError: it cannot be rendered, or omits the user's text.
    """
    shown = _rendered(template, [{"type": "image"}, {"type": "text", "text": _PROBE}])
    template = with_fixed_date(template)
    # A text-only template renders the list of parts as its Python repr, or fails.
    if shown.count("<image>") == 1 and shown.count(_PROBE) == 1 and "'type'" not in shown:
        return template if _PROBE in _rendered(template, _PROBE) else _AS_PARTS + template
    around = with_images(template)
    try:
        shown = _rendered(around, [{"type": "image"}, {"type": "text", "text": _PROBE}], fails=True)
    except (TemplateError, TypeError, ValueError) as error:
        raise ChatTemplateError(f"the chat template of {where} cannot be rendered: {error}; {_CHOOSE}") from error
    if shown.count("<image>") != 1 or _PROBE not in shown:
        raise ChatTemplateError(f"the chat template of {where} omits the user's text or image; {_CHOOSE}")
    return around


def with_images(template: str) -> str:
    """The template of a text-only language model, wrapped to accept message parts as well as strings.

    Args:
        template: the Jinja source from a tokenizer.

    Returns:
        A self-contained Jinja source: it flattens the messages first, then the given template sees strings.
    """
    return (
        _FLATTEN
        + """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set flat.messages = flat.messages + [dict(message, content=image_text(message, '\\n'))] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""
        + with_fixed_date(template)
    )


def with_fixed_date(template: str) -> str:
    """The template with `DATE` where it writes today's date: a conversation has the same prompt on any day."""
    return _TODAY.sub(lambda call: json.dumps(DATE.strftime(call["format"])), template)


def breaks_answers(template: str) -> str | None:
    """What is wrong with a template for training on a conversation's answers; None if nothing is, or it is not known.

    A prompt must continue with the answer, a mark must end it, and later turns must not change earlier ones. Templates
    of models that think before they answer write an empty thought before the last answer that the prompt does not have.
    (`PLAIN` has no mark, as in LLaVA.)
    """
    said = [{"role": role, "content": f"{_PROBE} {role} {turn}"} for turn in "12" for role in ("user", "assistant")]
    try:
        whole = _render(template, said, opens=False)
        for end in (1, 3):
            prompt, after = _render(template, said[:end], opens=True), _render(template, said[: end + 1], opens=False)
            if not (whole.startswith(after) and after.startswith(prompt)):
                return "it writes earlier turns otherwise when later ones follow"
            written = after[len(prompt) :].partition(said[end]["content"])[0]
            if written.strip():
                return f"it writes {written.strip()!r} before an answer, but not in the prompt for one"
        if not _render(template, said[:2], opens=False).rpartition(said[1]["content"])[2].strip():
            return "it writes no mark after an answer, so a model would not learn to stop"
    except (TemplateError, TypeError, ValueError):
        return None
    return None


def _rendered(template: str, content: Any, *, fails: bool = False) -> str:
    """A user message rendered with the template; empty if rendering fails, or the error raised if `fails`."""
    try:
        return _render(template, [{"role": "user", "content": content}], opens=True)
    except (TemplateError, TypeError, ValueError):
        if fails:
            raise
        return ""


def _render(template: str, messages: list[dict[str, Any]], *, opens: bool) -> str:
    """A conversation rendered with the template, and the beginning of an answer if it `opens` one."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        [messages], chat_template=template, bos_token="<s>", eos_token="</s>", add_generation_prompt=opens
    )
    return str(rendered[0][0])
