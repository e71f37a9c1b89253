"""A client's request → what the engine is asked, with the images decoded and every limit checked."""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from PIL.Image import Image

from aligngpt.inference.engine import Engine, EngineError, Request, Sampling
from aligngpt.inference.generation.prompts import ContextLengthError, Prompt
from aligngpt.model.processing import is_interleaved
from aligngpt.serving.errors import ApiError
from aligngpt.serving.media import MediaPolicy, pictures_from_urls
from aligngpt.serving.media_errors import MediaError
from aligngpt.serving.protocol import ChatRequest, ImagePart, Message

log = logging.getLogger("aligngpt.serving")

Parts = list[dict[str, Any]]
"""The content of a message in transformers' chat format."""

CHARACTERS_PER_TOKEN = 64
"""More than any text has on average, so a longer text than this allows need not be tokenized, which takes long."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask.

    Attributes:
        answer_tokens: tokens of an answer if the request gives no number, at most.
        media: which images are accepted.
        keep: whether conversations are kept, so that their next turn need not read them again.
    """

    answer_tokens: int = 1024
    media: MediaPolicy = field(default_factory=MediaPolicy)
    keep: bool = True


@dataclass(frozen=True)
class Prepared:
    """A request that the engine can begin.

    Attributes:
        prompt, sampling, keep: as in the engine's ticket.
    """

    prompt: Prompt
    sampling: Sampling
    keep: bool


def prepare(body: ChatRequest, engine: Engine, limits: Limits) -> Prepared:
    """Decode the images, write the prompt and decide how tokens are chosen.

    Raises:
        ApiError: the request cannot be answered.
    """
    body.check()
    _check_characters(body.messages, engine.prompts.context)
    _check_level(body.alignment_level, engine)
    messages, images = _conversation(body.messages, limits.media)
    if body.alignment_level is not None and not images:
        raise ApiError(
            400,
            "alignment_level acts on images, and this conversation has none; leave it out",
            param="alignment_level",
        )
    request = Request(messages, images, body.alignment_level, keep=limits.keep)
    asked = body.answer_tokens
    try:
        prompt = engine.prompts.write(request, asked or 1)
    except ContextLengthError as error:
        raise ApiError(400, str(error), param="messages", code="context_length_exceeded") from error
    except EngineError as error:
        raise ApiError(400, str(error), param="messages") from error
    context = engine.prompts.context
    if asked is None:
        asked = limits.answer_tokens if context is None else min(limits.answer_tokens, context - len(prompt.ids))
    return Prepared(prompt, replace(_sampling(body), max_new_tokens=asked), limits.keep)


def _check_characters(messages: list[Message], context: int | None) -> None:
    if context is None:
        return
    texts = (
        text
        for message in messages
        for text in (
            [message.content]
            if isinstance(message.content, str)
            else [part.text for part in message.content if not isinstance(part, ImagePart)]
        )
    )
    if (found := sum(map(len, texts))) > CHARACTERS_PER_TOKEN * context:
        raise ApiError(
            400,
            f"the conversation has {found} characters, but the model's context is {context} tokens, for which at most "
            f"{CHARACTERS_PER_TOKEN * context} characters are read; shorten it",
            param="messages",
            code="context_length_exceeded",
        )


def _check_level(level: int | None, engine: Engine) -> None:
    if level is None:
        return
    if engine.model.model.alignment is None:
        raise ApiError(400, "this model has no alignment levels; leave alignment_level out", param="alignment_level")
    if level > engine.num_levels:
        raise ApiError(
            400, f"alignment_level {level} is not one of the model's, 1…{engine.num_levels}", param="alignment_level"
        )


def _conversation(messages: list[Message], media: MediaPolicy) -> tuple[list[dict[str, Any]], tuple[Image, ...]]:
    """The messages in transformers' chat format, neighbours of one role as one, and the images in order.

    Models are trained on conversations in which questions and answers alternate, and on system turns with a text.
    """
    urls: list[str] = []
    said: list[tuple[str, list[Parts]]] = []
    where = "messages"
    for number, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        if role == "system" and _is_blank(message):
            continue
        if role == "system" and said and said[-1][0] != "system":
            raise ApiError(
                400,
                f"a message of role {message.role} can only stand at the beginning; put its text there, or into a "
                "message of the user",
                param=f"messages[{number}].role",
            )
        parts: Parts = []
        content = [message.content] if isinstance(message.content, str) else message.content
        for place, part in enumerate(content):
            if not isinstance(part, ImagePart):
                parts.append(_text(part if isinstance(part, str) else part.text))
                continue
            where = f"messages[{number}].content[{place}].image_url"
            if message.role != "user":
                raise ApiError(400, f"a message of role {message.role} cannot have images", param=where)
            urls.append(part.image_url.url)
            parts.append({"type": "image"})
        if said and said[-1][0] == role:
            said[-1][1].append(parts)
        else:
            said.append((role, [parts]))
    if not said or said[-1][0] != "user":
        raise ApiError(
            400,
            "the model answers a message of role user, but the last one is of another; end with one of the user, and "
            "leave an unfinished answer out",
            param=f"messages[{len(messages) - 1}].role",
        )
    written = [{"role": role, "content": _joined(told, "\n\n" if role == "system" else "\n")} for role, told in said]
    try:
        return written, tuple(pictures_from_urls(urls, media))
    except MediaError as error:
        log.info("an image was refused", exc_info=error)
        where = where if len(urls) == 1 else "messages"
        raise ApiError(error.status, error.message, param=where, code=error.code) from error


def _is_blank(message: Message) -> bool:
    if isinstance(message.content, str):
        return not message.content.strip()
    return not any(isinstance(part, ImagePart) or part.text.strip() for part in message.content)


def _joined(messages: list[Parts], line_break: str) -> Parts:
    """What neighbouring messages of one role say, as one message in the form that models are trained on.

    Texts are one text: some templates write the first part only. A text about images has no white space around it, and
    images are on lines of their own unless a message has them inside its text.
    """
    if not any(part["type"] == "image" for parts in messages for part in parts):
        texts = ("".join(part["text"] for part in parts) for parts in messages)
        return [_text(line_break.join(filter(None, texts)))]
    lines = [line for parts in messages for line in _lines(parts)]
    together = [part for line in lines for part in line]
    if not is_interleaved(together):
        # Templates write the images first, each with its line break.
        text = line_break.join(part["text"] for part in together if part["type"] == "text")
        return [*(part for part in together if part["type"] == "image"), *([_text(text)] if text else [])]
    return [*lines[0], *(part for line in lines[1:] for part in (_text(line_break), *line))]


def _lines(parts: Parts) -> list[Parts]:
    """Each image and then the text of one message; all of it as one if images stand inside the text."""
    if is_interleaved(parts):
        first, *middle, last = parts
        return [[_stripped(first, str.lstrip), *middle, _stripped(last, str.rstrip)]]
    text = "".join(part["text"] for part in parts if part["type"] == "text").strip()
    return [*([part] for part in parts if part["type"] == "image"), *([[_text(text)]] if text else [])]


def _stripped(part: dict[str, Any], strip: Callable[[str], str]) -> dict[str, Any]:
    return _text(strip(part["text"])) if part["type"] == "text" else part


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _sampling(body: ChatRequest) -> Sampling:
    """OpenAI's defaults: temperature 1, top_p 1, and other random numbers each time."""
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        stop=body.stops,
        answers=body.n or 1,
        log_probabilities=(body.top_logprobs or 0) if body.logprobs else None,
    )
