"""Which parts of an image match the text that the gate reads."""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from aligngpt.alignment.module import mean_text_embedding
from aligngpt.inference.generation.prompts import Prompt, as_row
from aligngpt.inference.requests import EngineError, Request
from aligngpt.model.segments import Samples, readable_text

if TYPE_CHECKING:
    from aligngpt.inference.engine import Engine


def similarity_map(engine: "Engine", request: Request, image: int = 0) -> np.ndarray:
    """The cosine between each image token and the mean text embedding that the gate reads.

    The gate reads the inner products of the same vectors (`aligngpt.alignment.module.similarity_map`); the cosine
    leaves out their lengths, so that maps of different questions can be compared. The text is that before the first
    answer, or, for models whose gate reads all of the text (`text_pooling: all`), the whole conversation. A forced
    level makes no difference. The language model's layers are not run.

    Args:
        engine: the model.
        request: a conversation with images.
        image: which of its images, from 0.

    Returns:
        float32 `(grid, grid)`, from -1 to 1, with the top left part of the image as the model sees it first.

    Raises:
        EngineError: the request has no such image, the model has no alignment module, or its image tokens are not a
            square grid.
    """
    if not 0 <= image < len(request.images):
        raise EngineError(f"there is no image {image} (counted from 0): the conversation has {len(request.images)}")
    if engine.model.model.alignment is None:
        raise EngineError("this model has no alignment module (alignment: none), so nothing compares image and text")
    prompt = engine.prompts.write(request, 1)
    cosines: Tensor = engine.loop.run(lambda: _cosines(engine, prompt, image))
    side = math.isqrt(len(cosines))
    if side * side != len(cosines):
        raise EngineError(f"the {len(cosines)} image tokens of this model are not a square grid, so there is no map")
    return cosines.view(side, side).cpu().numpy()


@torch.inference_mode()
def _cosines(engine: "Engine", prompt: Prompt, image: int) -> Tensor:
    """Cosines `(P,)` of the tokens of one image; zero if the gate reads no text."""
    body = engine.model.model
    (seen,) = engine.loop.pictures.look([prompt])
    assert seen is not None
    ids = as_row(prompt.gate_ids, engine.model.device)
    embeds = body.get_input_embeddings()(ids)
    is_image = ids == engine.model.config.image_token_id
    readable = readable_text(body.align_positions(ids, embeds), is_image, None, None, Samples.of_rows(embeds))
    text = mean_text_embedding(embeds, readable)
    return F.cosine_similarity(seen.features[image].float(), text.float(), dim=-1)
