"""Starts a chat from the command line: checks, loads the model, opens the images, reads lines."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from aligngpt.chatting.lines import ctrl_c_stops_answers, lines_of_stdin
from aligngpt.data.images.opening import open_image
from aligngpt.errors import AlignGPTError
from aligngpt.hub_names import local_or_hub
from aligngpt.progress import status


class ChatStartError(AlignGPTError):
    """A chat cannot begin."""


def chat(
    model: str | Path,
    images: Sequence[Path] = (),
    *,
    base: str | Path | None = None,
    level: int | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> bool:
    """Chat with a model: lines from stdin, answers to stdout, everything else to stderr.

    Args:
        model: folder or hub name.
        images: paths of the images that go with the first question.
        base, device, precision: see `Engine.load`.
        level: alignment level 1…N to force at first.
        max_new_tokens, temperature, seed: see `Sampling`.

    Returns:
        Whether every question was answered and every command carried out.

    Raises:
        AlignGPTError: an image or the model is unusable, or there is no such level.
    """
    for image in images:
        open_image(image)  # A wrong path is reported before the model is loaded, which takes long.
    local_or_hub(model, "the model", ChatStartError, with_owner=True)
    with status("loading the model"):
        from aligngpt.chatting.chat import COMMANDS, Chat, note
        from aligngpt.inference.engine import Engine, Sampling

        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        engine = Engine.load(model, base=base, device=device, dtype=precision)
    with engine:
        running = Chat(engine, sampling)
        if level is not None:
            running.do(f"/level {level}")
        if sys.stdin.isatty():
            note("/help lists the commands; Ctrl-D ends the chat")
        if images:
            running.show(images)
        with ctrl_c_stops_answers():
            return running.run(lines_of_stdin(COMMANDS))
