"""Asks one question about one image, for the command line."""

import re
from collections.abc import Iterator
from pathlib import Path

from aligngpt.data.images.opening import open_image
from aligngpt.inference.engine import Engine, EngineError, Request, Sampling

BAR_WIDTH = 40
WEB_ADDRESS = re.compile("(https?|ftp):/")
"""With one slash only, since `Path` collapses the two of a web address."""


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
    """Yield the answer in pieces.

    Args:
        model: folder or hub name.
        base: base model of an adapter folder, see `Engine.load`.
        image: path of the image.
        question: the question about the image.
        show_alignment: yield the gate's weights first, one line per level.
        level: alignment level 1…N to force.
        max_new_tokens: maximum number of generated tokens.
        device: see `Engine.load`.

    Raises:
        AlignGPTError: the image or the model is unusable, the question is blank, or there is no such level.
    """
    if not question.strip():
        raise EngineError("the question is empty; say what you want to know about the image")
    if WEB_ADDRESS.match(str(image)):
        raise EngineError(f"{image.name} is on the web; download the image and give its path")
    # Open it before the model, which takes longer to load: a wrong path should fail at once.
    picture = open_image(image)
    engine = Engine.load(model, base=base, device=device)
    request = Request.ask(question, picture, level=level)
    if show_alignment:
        yield describe_alignment(engine, request) + "\n"
    yield from engine.stream(request, Sampling(max_new_tokens=max_new_tokens))


def describe_alignment(engine: Engine, request: Request) -> str:
    """Describe how the alignment embedding of a request is formed, as lines for a terminal."""
    # Compute these first: it raises an error for a level that the model does not have.
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
