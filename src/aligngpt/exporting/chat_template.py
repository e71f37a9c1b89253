"""A chat template that does what our processor does besides: it writes BOS and `<align>`."""

import json
from collections.abc import Sequence
from typing import Any

from aligngpt.exporting.loading import ExportError
from aligngpt.model.processing import AlignGPTProcessor

_PICTURE, _TEXT = {"type": "image"}, {"type": "text", "text": "what is it ?"}
PROBES: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": [_TEXT]}],
    [{"role": "user", "content": [_PICTURE, _TEXT]}],
    [
        {"role": "user", "content": [_TEXT]},
        {"role": "assistant", "content": [_TEXT]},
        {"role": "user", "content": [_PICTURE, _PICTURE, _TEXT]},
    ],
    [{"role": "user", "content": [_TEXT, _PICTURE, _TEXT, _PICTURE, _TEXT]}],
)
"""Conversations that the two templates must render alike."""

# Images inside a text become `<image>` within it, as `AlignGPTProcessor.neutral` leaves them; some templates write all
# images of a message before its text.
_IN_PLACE = """\
{%- set placed = namespace(messages=[], text='') -%}
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- set placed.text = '' -%}
{%- for part in content if content is not string -%}
{%- set placed.text = placed.text + (part['text'] if part['type'] == 'text' else IMAGE) -%}
{%- endfor -%}
{%- set texts = placed.text.split(IMAGE) -%}
{%- if (texts[:-1] | join | trim) and (texts[1:] | join | trim) -%}
{%- set content = [{'type': 'text', 'text': placed.text}] -%}
{%- endif -%}
{%- set placed.messages = placed.messages + [dict(message, content=content)] -%}
{%- endfor -%}
{%- set messages = placed.messages -%}
"""


def self_contained(processor: AlignGPTProcessor) -> str:
    """The processor's chat template, extended to write what its `place_align` and the tokenizer add to the text.

    BOS comes first if the template or the tokenizer writes it, and `<align>` next if the conversation has an image.
    Servers tokenize rendered conversations without adding BOS. Images inside a text stay there.

    Raises:
        ExportError: the extended template renders a conversation otherwise than the processor does.
    """
    template = processor.chat_template
    if not isinstance(template, str):
        raise ExportError("the processor has no chat template; save one with it (chat_template.jinja)")
    bos = processor.tokenizer.bos_token or ""
    written_out = bos in template
    # As in place_align: a BOS that opens every message does not count as one.
    in_each = "and (aligned.split(bos_written) | length) <= 2" if written_out else ""
    lines = [
        # The plus signs keep white space at both ends of the template, as it is kept when it stands alone.
        "{% set aligned +%}" + template.removesuffix("\n") + "{%+ endset -%}",
        f"{{%- set bos_written = {_quoted(bos)} -%}}",
        f"{{%- set adds_bos = {'true' if adds_bos(processor.tokenizer) else 'false'} -%}}",
        "{%- set opening = '' -%}",
        "{%- if bos_written and aligned.startswith(bos_written) -%}",
        f"{{%- if true {in_each} -%}}{{%- set opening = bos_written -%}}{{%- endif -%}}",
        "{%- elif adds_bos -%}{{- bos_written -}}{%- endif -%}",
    ]
    if processor.align_token is None:
        lines.append("{{- aligned -}}")
    else:
        image, align = _quoted(processor.image_token), _quoted(processor.align_token)
        lines += [
            f"{{%- set has_image = {image} in aligned -%}}",
            "{{- opening -}}",
            f"{{%- if has_image -%}}{{{{- {align} -}}}}{{%- endif -%}}",
            "{{- aligned[(opening | length):] -}}",
        ]
    extended = "".join(lines)
    if _difference(processor, extended, PROBES) is not None:
        extended = _IN_PLACE.replace("IMAGE", _quoted(processor.image_token)) + extended
    if (trouble := _difference(processor, extended, PROBES)) is not None:
        raise ExportError(f"{trouble}; train the model with another template (model.chat_template)")
    return extended


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer writes BOS before a text by itself."""
    return bool(tokenizer.bos_token) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _difference(processor: AlignGPTProcessor, extended: str, probes: Sequence[list[dict[str, Any]]]) -> str | None:
    """Where the extended template renders a conversation otherwise than the processor does; None if nowhere."""
    bos = processor.tokenizer.bos_token or ""
    for messages in probes:
        for prompting in (True, False):
            options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": prompting}
            ours = processor.place_align(processor.apply_chat_template(processor.neutral(messages), **options))
            theirs = processor.apply_chat_template(messages, extended, **options)
            if adds_bos(processor.tokenizer) and not ours.startswith(bos):
                ours = bos + ours
            if ours != theirs:
                return (
                    f"the chat template cannot be extended to do what the processor does: it renders {theirs!r}, "
                    f"expected {ours!r}"
                )
    return None


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
