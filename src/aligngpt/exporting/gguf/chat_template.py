"""The chat template in a GGUF file: it turns llama.cpp's media markers into what our processor makes of images.

llama.cpp hands messages with images to the template as strings, in which each image is a marker `<__media…__>`, without
a line break around it, and the same for all images of a process. It then cuts the rendered text at the markers.
"""

import json
import re
from typing import Any

from aligngpt.exporting.chat_template import PROBES, adds_bos
from aligngpt.exporting.loading import ExportError
from aligngpt.model.processing import AlignGPTProcessor

MARKER = "<__media_0123__>"
"""A marker as llama.cpp's server makes them; its other programs write `<__media__>`."""

_START, _END = "<__media", "__>"

# `seen.parts` gets what `AlignGPTProcessor.neutral` leaves of the message: images and text in their order, or `<image>`
# within the text if an image stands between texts.
_READ_MARKERS = """\
{%- macro spelled_out(text) -%}
{%- set spelled = namespace(text=text) -%}
{%- for mark in SPECIAL -%}
{%- set spelled.text = spelled.text.replace(mark, mark[:1] + '\u2060' + mark[1:]) -%}
{%- endfor -%}
{{ spelled.text }}
{%- endmacro -%}
{%- set seen = namespace(messages=[], marker='', texts=[], before=false, after=false, parts=[], pieces=[]) -%}
{%- for message in messages -%}
{%- set seen.pieces = [] -%}
{%- if message['content'] is string -%}
{%- set seen.pieces = [message['content']] -%}
{%- elif message['content'] -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{%- set seen.pieces = seen.pieces + [part['text']] -%}
{%- endfor -%}
{%- endif -%}
{%- set seen.pieces = (seen.pieces | join('\\n')).split(START) -%}
{%- set seen.texts = [spelled_out(seen.pieces[0])] -%}
{%- for piece in seen.pieces[1:] -%}
{%- set inside = piece.split(END)[0] -%}
{%- if END in piece -%}
{%- set seen.marker = START + inside + END -%}
{%- set seen.texts = seen.texts + [spelled_out(piece[(inside | length) + (END | length):])] -%}
{%- else -%}
{%- set seen.texts = seen.texts[:-1] + [seen.texts[-1] + spelled_out(START + piece)] -%}
{%- endif -%}
{%- endfor -%}
{%- set seen.before = (seen.texts[:-1] | join('')).strip() != '' -%}
{%- set seen.after = (seen.texts[1:] | join('')).strip() != '' -%}
{%- set text = {'type': 'text', 'text': seen.texts | join('')} -%}
{%- if seen.texts | length == 1 -%}
{%- set seen.parts = seen.texts[0] -%}
{%- elif seen.before and seen.after -%}
{%- set seen.parts = [{'type': 'text', 'text': seen.texts | join(IMAGE)}] -%}
{%- else -%}
{%- set seen.parts = [] -%}
{%- for one in seen.texts[1:] -%}{%- set seen.parts = seen.parts + [{'type': 'image'}] -%}{%- endfor -%}
{%- set seen.parts = [text] + seen.parts if seen.before else seen.parts + [text] -%}
{%- endif -%}
{%- set seen.messages = seen.messages + [{'role': message['role'], 'content': seen.parts}] -%}
{%- endfor -%}
{%- set messages = seen.messages -%}
"""


def for_llama_cpp(processor: AlignGPTProcessor) -> str:
    """The processor's chat template for llama.cpp: it writes BOS, `<align>` and a marker for each image.

    It breaks up special tokens in the text as `AlignGPTProcessor.neutral` does.

    Raises:
        ExportError: it makes other tokens of a conversation than the processor does.
    """
    template = processor.chat_template
    if not isinstance(template, str):
        raise ExportError("the processor has no chat template; save one with it (chat_template.jinja)")
    marks = [token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special]
    values: dict[str, str | list[str]] = {
        "SPECIAL": [mark for mark in marks if len(mark) > 1],
        "START": _START,
        "END": _END,
        "IMAGE": processor.image_token,
    }
    # All at once: special tokens may contain these names.
    reading = re.sub("|".join(values), lambda name: _quoted(values[name[0]]), _READ_MARKERS)
    bos = processor.tokenizer.bos_token or ""
    # As in place_align: a BOS that opens every message does not count as one.
    in_each = "and (aligned.split(bos_written) | length) <= 2" if bos and bos in template else ""
    image, align = _quoted(processor.image_token), _quoted(processor.align_token or "")
    extended = "".join(
        [
            reading,
            # The line break is trimmed; the empty expression keeps white space at the end of the template.
            "{% set aligned %}\n" + template.removesuffix("\n") + "{{ '' }}{% endset %}",
            f"{{%- set bos_written = {_quoted(bos)} -%}}",
            "{%- set edge = namespace(opening='', adds='') -%}",
            f"{{%- if bos_written and aligned.startswith(bos_written) {in_each} -%}}",
            "{%- set edge.opening = bos_written -%}",
            "{%- endif -%}",
            f"{{%- set adds_bos = {'true' if adds_bos(processor.tokenizer) else 'false'} -%}}",
            "{%- if adds_bos and not aligned.startswith(bos_written) -%}",
            "{%- set edge.adds = bos_written -%}",
            "{%- endif -%}",
            "{{- edge.opening + edge.adds -}}",
            f"{{%- if {image} in aligned -%}}{{{{- {align} -}}}}{{%- endif -%}}",
            f"{{{{- aligned[(edge.opening | length):].replace({image}, seen.marker or {image}) -}}}}",
        ]
    )
    for messages in (*PROBES, *_MORE_PROBES):
        for prompting in (True, False):
            _compare(processor, extended, messages, prompting=prompting)
    return extended


_IMAGE, _WHAT = {"type": "image"}, {"type": "text", "text": "what is it ?"}
_MORE_PROBES: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": [_WHAT, _IMAGE]}],
    [{"role": "user", "content": [_WHAT, _IMAGE, _WHAT, _IMAGE]}],
    [{"role": "user", "content": [{"type": "text", "text": "is <image> or <align> red ?"}]}],
    [{"role": "user", "content": [_IMAGE, {"type": "text", "text": "<align> is red ?"}]}],
)


def as_llama_cpp_gives(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation as llama.cpp hands it to the chat template: strings, with a marker for each image."""
    given = []
    for message in messages:
        content, after_text = "", False
        for part in message["content"]:
            # Texts are joined by line breaks, markers with nothing.
            content += MARKER if part["type"] == "image" else "\n" * after_text + part["text"]
            after_text = part["type"] == "text"
        given.append({**message, "content": content})
    return given


def token_ids(processor: AlignGPTProcessor, rendered: str) -> list[int]:
    """Token ids of a text rendered for llama.cpp: the pieces between markers, and P image tokens for each marker."""
    image = [processor.tokenizer.convert_tokens_to_ids(processor.image_token)] * processor.image_seq_length
    pieces = [processor.tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in rendered.split(MARKER)]
    return [*pieces[0], *(number for piece in pieces[1:] for number in (*image, *piece))]


def _compare(processor: AlignGPTProcessor, extended: str, messages: list[dict[str, Any]], *, prompting: bool) -> None:
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": prompting}
    ours = processor.apply_chat_template(processor.neutral(messages), **options)
    expected, _ = processor.encode(processor.expand(ours))
    theirs = processor.apply_chat_template(as_llama_cpp_gives(messages), extended, **options)
    if token_ids(processor, theirs) != expected:
        raise ExportError(
            f"the chat template cannot be made to read llama.cpp's markers: it renders {theirs!r}, expected the tokens "
            f"of {processor.place_align(ours)!r}; give the model another template with aligngpt convert "
            "--chat-template"
        )


def _quoted(text: str | list[str]) -> str:
    return json.dumps(text, ensure_ascii=False)
