"""Chat templates: how a conversation is written as text.

A language model's own template comes with its tokenizer and expects each message to be a string; `with_images` lets
it take transformers' message parts (`[{"type": "image"}, {"type": "text", "text": …}]`) as well. Images are written
before the text of their message, as LLaVA's preprocessing does, wherever they stood.
"""

# `image_text` is the text of one message with one `<image>` for each of its images and `separator` after each.
_FLATTEN = """\
{%- macro image_text(message, separator) -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>' + separator }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
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
"""LLaVA's `plain` conversation, for pre-training on captions: BOS where there is one, image, caption, newline.

What a record asks beside its image ("describe the picture") and its system turn are left out, as LLaVA does.
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

Its turns end with `###`, which is no token: to end an answer there, give `generate` the argument `stop_strings`.
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

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|return|>")
"""Marks that chat templates write after a turn; a model stops at the one its template uses."""

NAMED_TEMPLATES = {
    "plain": PLAIN,
    "vicuna": VICUNA,
    "llava_v1": LLAVA_V1,
    "llava_v0": LLAVA_V0,
    "llava_llama_2": LLAVA_LLAMA_2,
    "chatml": CHATML,
    "bare": BARE,
}


def with_images(template: str) -> str:
    """A template of a text-only language model, made to take message parts as well as strings.

    Args:
        template: the Jinja source that a tokenizer carries.

    Returns:
        A self-contained Jinja source: the messages are flattened first, then the given template sees strings.
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
        + template
    )
