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
)
"""Conversations that the two templates must render alike."""


def self_contained(processor: AlignGPTProcessor) -> str:
    """The processor's chat template, extended to write what its `place_align` and the tokenizer add to the text.

    BOS comes first if the template or the tokenizer writes it, and `<align>` next if the conversation has an image.
    Servers tokenize rendered conversations without adding BOS.

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
    _compare(processor, extended, PROBES)
    return extended


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer writes BOS before a text by itself."""
    return bool(tokenizer.bos_token) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _compare(processor: AlignGPTProcessor, extended: str, probes: Sequence[list[dict[str, Any]]]) -> None:
    bos = processor.tokenizer.bos_token or ""
    for messages in probes:
        for prompting in (True, False):
            options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": prompting}
            ours = processor.place_align(processor.apply_chat_template(messages, **options))
            theirs = processor.apply_chat_template(messages, extended, **options)
            if adds_bos(processor.tokenizer) and not ours.startswith(bos):
                ours = bos + ours
            if ours != theirs:
                raise ExportError(
                    f"the chat template cannot be extended to write <align>: it renders {theirs!r}, expected {ours!r}; "
                    "give the model another template with aligngpt convert --chat-template"
                )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
