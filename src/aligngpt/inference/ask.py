"""Asks one question about one image, for the command line."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aligngpt.data.images.opening import open_image
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub
from aligngpt.progress import say, status

# Imported only when a model is loaded, which takes seconds: mistyped arguments are reported before.
if TYPE_CHECKING:
    from aligngpt.inference.engine import Engine, Request

BAR_WIDTH = 40
EIGHTHS = ("", *"▏▎▍▌▋▊▉")
WEB_ADDRESS = re.compile("(https?|ftp):/")
"""With one slash only, since `Path` collapses the two of a web address."""


NOT_UNICODE = "the question has bytes that are not UTF-8; set the terminal, or the file it comes from, to UTF-8"


class AskError(AlignGPTError):
    """A question that cannot be asked."""


def ask(
    model: str | Path,
    image: Path,
    question: str,
    *,
    base: str | Path | None = None,
    show_alignment: bool = False,
    level: int | None = None,
    max_new_tokens: int = 256,
    device: str = "auto",
    precision: str = "auto",
) -> Iterator[str]:
    """Yield the answer in pieces; an answer that is empty or cut off is reported on stderr.

    Args:
        model: folder or hub name.
        base: base model of an adapter folder, see `Engine.load`.
        image: path of the image.
        question: the question about the image.
        show_alignment: after the answer, yield the gate's weights, one line per level.
        level: alignment level 1…N to force.
        max_new_tokens: maximum number of generated tokens.
        device: see `Engine.load`.
        precision: see `Engine.load`.

    Raises:
        AlignGPTError: the image or the model is unusable, the question is blank or no Unicode, or there is no such
            level.
    """
    if not question.strip():
        raise AskError("the question is empty; say what you want to know about the image")
    if not is_unicode(question):
        raise AskError(NOT_UNICODE)
    if WEB_ADDRESS.match(str(image)):
        raise AskError(f"{image.name} is on the web; download the image and give its path")
    picture = open_image(image)
    local_or_hub(model, "the model", AskError, with_owner=True)
    with status("loading the model"):
        from aligngpt.inference.engine import Engine, Finished, Request, Sampling

        engine = Engine.load(model, base=base, device=device, dtype=precision)
    request = Request.ask(question.strip(), picture, level=level)
    empty, stopped = True, True
    for event in engine.events(request, Sampling(max_new_tokens=max_new_tokens)):
        if isinstance(event, Finished):
            stopped = event.answer.stopped
        elif event.text:
            empty = empty and not event.text.strip()
            yield event.text
    if empty:
        say("the model answered with nothing")
    elif not stopped:
        # The answer has no line break yet.
        say(f"\ncut off after {max_new_tokens} tokens; --max-new-tokens sets the limit")
    if show_alignment:
        yield ("" if empty else "\n") + describe_alignment(engine, request)


def is_unicode(text: str) -> bool:
    """Whether a text can be tokenized: Python reads bytes that are not UTF-8 as surrogates, which are no characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def describe_alignment(engine: "Engine", request: "Request") -> str:
    """Describe how the alignment embedding of a request is formed, as lines for a terminal.

    If it is a mix, the mark in each line is where its bar ends if all levels have the same weight.
    """
    # Compute these first: it raises an error for a level that the model does not have.
    weights = engine.alignment_weights([request])[0]
    if request.level is not None:
        return f"alignment: level {request.level} of {engine.num_levels}, forced"
    mode = engine.model.config.alignment
    if weights is None:
        return f"alignment: {mode}, without a gate"
    base = f"level {engine.num_levels} (the whole image) and " if mode == "adaptive" else ""
    even = 1 / len(weights)
    lines = [f"alignment: {base}a mix of (even: {even:.1%}, marked │)"]
    lines += [f"  level {level} {weight:6.1%} {_bar(weight, even)}" for level, weight in enumerate(weights, start=1)]
    return "\n".join(lines)


def _bar(share: float, even: float) -> str:
    """A bar of length `share`, with a mark at the length of `even`."""
    mark = round(even * BAR_WIDTH)
    full, rest = divmod(round(share * BAR_WIDTH * len(EIGHTHS)), len(EIGHTHS))
    bar = ("█" * full + EIGHTHS[rest]).ljust(mark)
    return f"{bar[:mark]}│{bar[mark:]}"
