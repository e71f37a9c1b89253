"""One question about one picture, as the command line asks it."""

import re
from collections.abc import Iterator
from pathlib import Path

from aligngpt.data.images.opening import open_image
from aligngpt.inference.engine import Engine, EngineError, Request, Sampling

BAR_WIDTH = 40
WEB_ADDRESS = re.compile("(https?|ftp):/")
"""A path writes two slashes as one."""


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
) -> Iterator[str]:
    """The answer, piece by piece.

    Args:
        model: folder or hub name.
        base: of an adapter folder, see `Engine.load`.
        image: the picture.
        question: what to ask about it.
        show_alignment: write the gate's weights first, one line a level.
        level: force this alignment level 1…N.
        max_new_tokens: longest answer.
        device: see `Engine.load`.

    Raises:
        AlignGPTError: the picture or the model cannot be used, the question is blank, or there is no such level.
    """
    if not question.strip():
        raise EngineError("the question is empty; say what you want to know about the picture")
    if WEB_ADDRESS.match(str(image)):
        raise EngineError(f"{image.name} is on the web; download the picture and give its path")
    # Before the model, which takes longer: a wrong path should say so at once.
    picture = open_image(image)
    engine = Engine.load(model, base=base, device=device)
    request = Request.ask(question, picture, level=level)
    if show_alignment:
        yield describe_alignment(engine, request) + "\n"
    yield from engine.stream(request, Sampling(max_new_tokens=max_new_tokens))


def describe_alignment(engine: Engine, request: Request) -> str:
    """How the alignment embedding of a request is formed, in lines for a terminal."""
    # Before anything is said: it refuses a level that the model does not have.
    weights = engine.alignment_weights([request])[0]
    if request.level is not None:
        return f"alignment: level {request.level} of {engine.num_levels}, forced"
    mode = engine.model.config.alignment
    if weights is None:
        return f"alignment: {mode}, without a gate"
    base = f"level {engine.num_levels} (the whole image) and " if mode == "adaptive" else ""
    lines = [f"alignment: {base}a mix of"]
    for level, weight in enumerate(weights, start=1):
        lines.append(f"  level {level} {weight:6.1%} {'█' * round(weight * BAR_WIDTH)}")
    return "\n".join(lines)
