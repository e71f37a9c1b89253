"""lmms-eval's chat messages and generation settings → requests and sampling of the engine; imports no lmms-eval."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from aligngpt.errors import AlignGPTError
from aligngpt.evaluation.benchmarks.asking import show
from aligngpt.evaluation.benchmarks.frame import PictureMode
from aligngpt.inference.requests import EngineError, Request, Sampling
from aligngpt.upright_rgb import upright_rgb

DEFAULT_NEW_TOKENS = 1024
"""Limit for tasks that set none, as lmms-eval's own LLaVA has it."""

WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "repetition_penalty": (None, 1),
    "length_penalty": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "min_new_tokens": (None, 0),
    "use_cache": (None, True, False),
    # The model's own option picture_mode decides how pictures are shown.
    "image_aspect_ratio": (None, "original", "pad"),
}
"""Settings that the engine does not have, with the values that change nothing."""


class HarnessError(AlignGPTError):
    """A task of lmms-eval asks for something that this package does not do, or an option is wrong."""


def request_of(
    messages: Sequence[Mapping[str, Any]], *, level: int | None = None, mode: PictureMode = "pad"
) -> Request:
    """The request for a conversation in lmms-eval's chat format.

    Args:
        messages: `{"role": …, "content": …}`, the content a text or a list of `{"type": "text", "text": …}` and
            `{"type": "image", "url": picture}`.
        level: alignment level 1…N to force; None leaves it to the gate.
        mode: how pictures are shown.

    Raises:
        HarnessError: a part is not text or a decoded picture, or there is nothing to answer.
    """
    if not messages:
        raise HarnessError("there are no messages to answer")
    pictures: list[Image.Image] = []
    told: list[dict[str, Any]] = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        told.append({"role": message["role"], "content": [_part(part, mode, pictures) for part in parts]})
    return Request(told, tuple(pictures), level)


def request_of_text(
    text: str, visuals: Sequence[object] | None, *, level: int | None = None, mode: PictureMode = "pad"
) -> Request:
    """The request for a text and its pictures, which come before it, as in lmms-eval's simple format.

    Raises:
        HarnessError: see `request_of`.
    """
    shown = [{"type": "image", "url": visual} for visual in visuals or ()]
    return request_of([{"role": "user", "content": [*shown, {"type": "text", "text": text}]}], level=level, mode=mode)


def sampling_of(settings: Mapping[str, Any]) -> Sampling:
    """How the tokens of an answer are chosen, from a task's `generation_kwargs`.

    Decoding is greedy if `do_sample` is false, or if the temperature is 0 or missing. An answer ends before the first
    text of `until`.

    Raises:
        HarnessError: a setting is unknown or has an effect that the engine does not have, or sampling is asked for
            without a temperature.
        EngineError: a value is out of its range.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    for name, values in WITHOUT_EFFECT.items():
        if (value := given.pop(name, None)) not in values:
            raise HarnessError(f"the task sets {name}={value!r}, which this model does not do; {_advice(name)}")
    stop = _texts(given.pop("until", ()))
    limit = given.pop("max_new_tokens", given.pop("max_gen_toks", DEFAULT_NEW_TOKENS))
    given.pop("max_gen_toks", None)
    sample, temperature = given.pop("do_sample", None), given.pop("temperature", None)
    if sample and temperature is None:
        raise HarnessError("the task sets do_sample without a temperature; add --gen_kwargs temperature=…")
    greedy = sample is False or not temperature
    top_p, top_k, seed = given.pop("top_p", 1.0), given.pop("top_k", 0), given.pop("seed", 0)
    if given:
        name = min(given)
        raise HarnessError(f"the task sets {name}={given[name]!r}, which this model does not know; {_advice(name)}")
    try:
        return (
            Sampling(max_new_tokens=int(limit), stop=stop)
            if greedy
            else Sampling(int(limit), float(temperature), float(top_p), int(seed), int(top_k), stop)
        )
    except (TypeError, ValueError) as error:
        raise HarnessError(f"a number in the task's generation_kwargs cannot be read: {dict(settings)}") from error
    except EngineError as error:
        raise HarnessError(f"the task's generation_kwargs cannot be used: {error}") from error


def _part(part: Mapping[str, Any], mode: PictureMode, pictures: list[Image.Image]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] != "image":
        raise HarnessError(f"the task shows the model {part['type']}; this model reads text and pictures only")
    if not isinstance(picture := part["url"], Image.Image):
        raise HarnessError(
            f"a picture of the task is {type(picture).__name__} {str(picture)[:80]!r}, expected a decoded picture "
            "(PIL.Image); decode it in the task's doc_to_visual"
        )
    pictures.append(show(upright_rgb(picture), mode))
    return {"type": "image"}


def _texts(until: object) -> tuple[str, ...]:
    texts = (until,) if isinstance(until, str) else until
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) and text for text in texts):
        raise HarnessError(f"the task sets until={until!r}, expected one or several texts that are not empty")
    return tuple(texts)


def _advice(name: str) -> str:
    return f"copy the task's YAML under a new name without {name}"
